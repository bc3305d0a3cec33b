import os

import pytest

from recon.evaluation.records import COLUMNS, NUMBER_FORMATS, Record, visible


def test_every_column_is_a_field_and_every_number_has_a_format() -> None:
    assert len(COLUMNS) == len(Record._fields)
    assert tuple(NUMBER_FORMATS) == COLUMNS[1:]


@pytest.mark.parametrize("name", ["a/b c.png", "ünï 好 🙂.png", "C:\\tiles\\new.png", "=1+1", ""])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert visible(name) == name


def test_every_byte_of_a_file_name_can_be_encoded_and_stays_on_one_line() -> None:
    shown = visible(os.fsdecode(bytes(range(256))))
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert len(shown.splitlines()) == 1


def test_spelling_out_twice_changes_nothing() -> None:
    once = visible("a\n\x00\udcff")
    assert once == "a\\n\\x00\\udcff"
    assert visible(once) == once
