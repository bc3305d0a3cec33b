"""Where the bar of an epoch is shown."""

import io
import sys

import pytest

from recon.training.meter import bar_hidden


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_shown_on_the_terminal_of_the_first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not bar_hidden(first=True)
    assert bar_hidden(first=False)


def test_a_bar_is_hidden_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Terminal()
    closed.close()
    for stream in (io.StringIO(), closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert bar_hidden(first=True)
