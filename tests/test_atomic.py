from pathlib import Path

import pytest

from recon.files import partial_name, replacing


def test_a_file_appears_under_its_name_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as partial:
        partial.write_text("whole", encoding="utf-8")
        assert partial == partial_name(path)
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "whole"
    assert not partial.exists()


def fill_half(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt


def test_an_interruption_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        fill_half(path)
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == ["old"]
