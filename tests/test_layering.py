"""Which module may import which, and how long files and functions may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "recon").rglob("*.py"))
TOP_LEVEL = sorted(ROOT.glob("*.py"))
TOOLS = sorted(
    p
    for folder in ("benchmarks", "input_images", "sample_models")
    for p in (ROOT / folder).glob("*.py")
)
SOURCES = PACKAGE + TOP_LEVEL + TOOLS
BUILDING_BLOCKS = {"Config", "Auto_encoder", "datasets"}
SCRIPTS = [path for path in TOP_LEVEL if path.stem not in BUILDING_BLOCKS]

MAX_FUNCTION, MAX_FILE, MAX_SCRIPT = 40, 300, 40  # lines; a docstring is not counted in a function
# Finding and reading images stays one file that other projects can copy.
EXCEPTIONS = {"datasets.py": 890}

LEAVES = {"errors", "files", "gpus", "provenance", "ranks", "signals"}
BASE = {"models", "objectives", "data"}
# Part of the package to the other parts that it may import.
ARROWS: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "files": {"errors"},
    "gpus": {"errors"},
    "provenance": {"errors", "files"},
    "ranks": {"errors"},
    "sections": {"errors"},
    "sources": {"errors"},
    "settings": {"errors", "sections", "sources"},
    "signals": set(),
    "stopping": {"errors", "signals"},
    "command": {"errors", "gpus", "settings", "stopping"},
    "models": {"errors", "files"},
    "objectives": {"errors", "files"},
    "data": {"errors", "files", "signals"},
    "training": BASE | LEAVES,
    "evaluation": BASE | LEAVES,
    "analysis": BASE | LEAVES,
}
ARROWS["pipeline"] = set(ARROWS)
WITHOUT_TORCH = (LEAVES - {"ranks"}) | {"sections", "sources", "settings", "stopping", "command"}


def name_of(path: Path) -> str:
    """Dotted name of a module; a package bears the name of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Names of all that a module imports, anywhere in it: `a.b` for `from a import b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The last part of a module is its own name; a package lies one step further down.
            place = [*module.split("."), ""] if is_package else module.split(".")
            above = place[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and is_dynamic_import(node.func) and node.args:
            name = node.args[0]
            yield str(name.value) if isinstance(name, ast.Constant) else "<computed>"


def is_dynamic_import(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__"}


def part_of(module: str) -> str:
    """`training` for `recon.training.trainer`, `__init__` for `recon` itself."""
    return [*module.split("."), "__init__"][1]


def is_allowed(module: str, imported: str) -> bool:
    """Whether one module may import another name, ours or not."""
    top = imported.split(".")[0]
    if top == "<computed>":
        return False
    ours = {path.stem for path in TOP_LEVEL}
    if not module.startswith("recon"):
        allowed = BUILDING_BLOCKS | {"recon"} if module not in BUILDING_BLOCKS else set()
        return top not in ours | {"recon"} or top in allowed
    if top != "recon":
        return top not in ours
    part, target = part_of(module), part_of(imported)
    return target == part != "__init__" or target in ARROWS.get(part, set())


def arrows(path: Path) -> list[str]:
    source, name = path.read_text(encoding="utf-8"), name_of(path)
    return list(imports_of(source, name, is_package=path.stem == "__init__"))


# Arrows


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_nothing_that_it_may_not(path: Path) -> None:
    name = name_of(path)
    assert [imported for imported in arrows(path) if not is_allowed(name, imported)] == []


def test_every_part_of_the_package_has_its_place_in_the_table() -> None:
    assert {part_of(name_of(path)) for path in PACKAGE} <= set(ARROWS)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("recon.data.loaders", "recon.models.output"),
        ("recon.data.loaders", "recon.settings"),
        ("recon.models.output", "recon.provenance.flatten"),
        ("recon.objectives.ssim", "recon.data"),
        ("recon.training.trainer", "recon.evaluation.curves"),
        ("recon.training.trainer", "recon.settings.Settings"),
        ("recon.evaluation.curves", "recon.training.logs"),
        ("recon.analysis.layers", "recon.pipeline"),
        ("recon.command", "recon.pipeline"),
        ("recon.errors", "recon.files"),
        ("recon.files", "recon.gpus"),
        ("recon", "recon.settings"),
        ("recon.pipeline.training", "Auto_encoder.AutoEncoder"),
        ("recon.pipeline.training", "datasets"),
        ("recon.command", "Config"),
        ("recon.pipeline", "<computed>"),
        ("Auto_encoder", "recon.models"),
        ("Auto_encoder", "Config"),
        ("datasets", "recon.errors"),
        ("Config", "recon"),
        ("Training_MSE", "Training_SSIM.main"),
    ],
)
def test_an_arrow_against_the_rules_is_noticed(module: str, imported: str) -> None:
    assert not is_allowed(module, imported)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("recon.data.loaders", "recon.data.splits.by_group"),
        ("recon.data.cache", "recon.files.replacing"),
        ("recon.training.trainer", "recon.models.output"),
        ("recon.pipeline.training", "recon.settings.Settings"),
        ("recon.training.trainer", "torch"),
        ("Training_MSE", "recon.command.run_command"),
        ("Training_MSE", "Auto_encoder.AutoEncoder"),
        ("datasets", "torch"),
    ],
)
def test_an_arrow_within_the_rules_passes(module: str, imported: str) -> None:
    assert is_allowed(module, imported)


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("import recon.data.loaders", "recon.data.loaders"),
        ("from recon import data", "recon.data"),
        ("from recon.data.loaders import Batch", "recon.data.loaders.Batch"),
        ("def f():\n    import datasets", "datasets"),
        ("from . import logs", "recon.training.logs"),
        ("from ..data import loaders", "recon.data.loaders"),
        ("importlib.import_module('Config')", "Config"),
        ("__import__(name)", "<computed>"),
    ],
)
def test_every_way_of_importing_is_seen(line: str, imported: str) -> None:
    assert list(imports_of(line, "recon.training.trainer")) == [imported]


def test_relative_imports_of_a_package_are_seen() -> None:
    lines = "from . import logs\nfrom .logs import EpochRow\nfrom ..data import loaders"
    assert list(imports_of(lines, "recon.training", is_package=True)) == [
        "recon.training.logs",
        "recon.training.logs.EpochRow",
        "recon.data.loaders",
    ]


# Torch


def reach(names: list[str]) -> set[str]:
    """Everything that these modules of the package import, directly or through each other."""
    known = {name_of(path): path for path in PACKAGE}
    reached: set[str] = set()
    while names:
        name = names.pop()
        owner = next((n for n in (name, name.rpartition(".")[0]) if n in known), None)
        if name not in reached and owner is not None:
            names += arrows(known[owner])
        reached.add(name)
    return reached


@pytest.mark.parametrize("part", sorted(WITHOUT_TORCH))
def test_what_runs_before_the_gpus_are_chosen_reaches_no_torch(part: str) -> None:
    tops = {name.split(".")[0] for name in reach([f"recon.{part}"])}
    assert tops & {"torch", "torchvision", "pytorch_msssim"} == set()


def test_torch_is_found_where_it_is_reached_through_others() -> None:
    assert "torch" in {name.split(".")[0] for name in reach(["recon.pipeline"])}


# Lengths


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the signature to the end, without the docstring."""
    first, last = function.body[0], function.end_lineno or 0
    documented = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return last - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [f"{f.name}: {length_of(f)}" for f in functions if length_of(f) > MAX_FUNCTION] == []


def test_the_length_of_a_function_leaves_out_its_docstring() -> None:
    function = ast.parse('def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x').body[
        0
    ]
    assert isinstance(function, ast.FunctionDef)
    assert length_of(function) == 4


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_file_is_longer_than_its_limit(path: Path) -> None:
    limit = EXCEPTIONS.get(path.name, MAX_SCRIPT if path in SCRIPTS else MAX_FILE)
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= limit


def test_scripts_are_among_the_files_that_are_read() -> None:
    assert {"Training_MSE", "Evaluation_SSIM"} <= {path.stem for path in SCRIPTS}
