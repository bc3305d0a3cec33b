"""The trials of `benchmarks.reliability` in small; `make reliability` runs the real ones."""

import os
from pathlib import Path

import pytest

from benchmarks.reliability import TRIALS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals and limits")


@pytest.mark.parametrize("name", TRIALS)
def test_a_small_trial_finds_no_fault(name: str, tmp_path: Path) -> None:
    result = TRIALS[name].run(tmp_path, TRIALS[name].quick)
    assert result.failures == [], result.figure
