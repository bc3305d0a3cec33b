"""The README says what the code does."""

import re
from pathlib import Path

import pytest

from recon.sections import SECTIONS
from recon.sources import described

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def settings_table() -> list[str]:
    """A row for each setting, as the README holds them."""
    rows = []
    for section in SECTIONS:
        for name, field in section.model_fields.items():
            text = described(field).replace("|", "\\|")
            rows.append(f"| `{name}` | `{field.default!r}` | {text} |")
    return rows


@pytest.mark.parametrize("row", settings_table())
def test_every_setting_stands_in_the_table_with_its_default(row: str) -> None:
    assert row in README


def test_the_table_holds_no_setting_that_is_gone() -> None:
    table = README.partition("## Settings")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if re.match(r"\| `\w", line)]
    assert rows == settings_table()


def test_the_files_that_it_names_exist() -> None:
    scripts = set(re.findall(r"\b(?:Training|Evaluation|Check)_\w+\.py\b", README))
    pictures = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", README))
    assert scripts
    assert pictures
    assert all((ROOT / name).is_file() for name in scripts | pictures)


def test_the_make_targets_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
