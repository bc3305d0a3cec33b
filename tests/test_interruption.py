import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from recon.signals import ENDING_SIGNALS
from recon.training.interruption import Watch, watch_signals


@pytest.fixture
def handlers() -> Iterator[None]:
    """Whatever a test does to the signals is undone."""
    before = {signum: signal.getsignal(signum) for signum in ENDING_SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("signum", ENDING_SIGNALS)
def test_the_first_signal_is_noted_and_the_second_acts_as_before(signum: signal.Signals) -> None:
    seen: list[int] = []
    signal.signal(signum, lambda number, _frame: seen.append(number))
    with watch_signals() as watch:
        assert watch.signum is None
        os.kill(os.getpid(), signum)
        assert (watch.signum, seen) == (signum, [])
        os.kill(os.getpid(), signum)
    assert seen == [signum]


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_was_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with watch_signals() as watch:
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.signum is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_may_train_without_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def watch() -> Watch:
        with watch_signals() as watched:
            assert signal.getsignal(signal.SIGTERM) is before
        return watched

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(watch).result().signum is None
