import os

import pytest

from recon.evaluation.records import (
    COLUMNS,
    NOISY,
    NUMBER_FORMATS,
    NoisyInput,
    Record,
    visible,
)


def test_every_column_is_a_field_and_every_number_has_a_format() -> None:
    assert len(COLUMNS) == len(Record._fields) - 1  # The noisy input has columns of its own.
    assert len(NOISY) == len(NoisyInput._fields)
    assert tuple(NUMBER_FORMATS) == COLUMNS[1:] + NOISY


def test_metrics_bear_the_headings_of_their_columns() -> None:
    plain = Record("a.png", 0.1, 10.0, 0.5, 8, 9)
    assert plain.metrics() == {"MSE": 0.1, "PSNR": 10.0, "SSIM": 0.5}
    noisy = plain._replace(noisy=NoisyInput(0.2, 7.0, 0.3, 3.0))
    assert noisy.metrics() == plain.metrics() | {
        "Noisy MSE": 0.2,
        "Noisy PSNR": 7.0,
        "Noisy SSIM": 0.3,
        "PSNR Gain": 3.0,
    }


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
