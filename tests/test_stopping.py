import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recon.errors import InterruptedRunError
from recon.signals import ENDING_SIGNALS
from recon.stopping import signals_as_errors

ROOT = Path(__file__).parents[1]
EACH = pytest.mark.parametrize(
    ("signum", "error"),
    [(s, KeyboardInterrupt if s == signal.SIGINT else InterruptedRunError) for s in ENDING_SIGNALS],
)


@pytest.fixture(autouse=True)
def heeding() -> Iterator[None]:
    """No signal is ignored, as it is where the tests themselves run under nohup."""
    before = {signum: signal.getsignal(signum) for signum in ENDING_SIGNALS}
    for signum in ENDING_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module that can be imported once; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> str:
        name = f"module_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


def then_wait(work: Callable[..., object], *args: object) -> None:
    """Do something, and then more, as a job would."""
    work(*args)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        time.sleep(0.01)


@EACH
def test_a_signal_ends_what_runs(signum: signal.Signals, error: type[BaseException]) -> None:
    before = signal.getsignal(signum), sys.unraisablehook
    with pytest.raises(error), signals_as_errors():
        then_wait(os.kill, os.getpid(), signum)
    assert (signal.getsignal(signum), sys.unraisablehook) == before


@EACH
def test_a_signal_amid_an_import_waits_for_its_end(
    signum: signal.Signals, error: type[BaseException], module: Callable[[str], str]
) -> None:
    code = """
import os, time
os.kill(os.getpid(), {signum})
time.sleep(0.2)
done = True
"""
    name = module(code.format(signum=int(signum)))
    with pytest.raises(error), signals_as_errors():
        then_wait(__import__, name)
    assert sys.modules[name].done


def test_what_is_imported_around_a_run_delays_nothing(module: Callable[[str], str]) -> None:
    code = """
import os, time
from recon.errors import InterruptedRunError
from recon.signals import ENDING_SIGNALS
from recon.stopping import signals_as_errors
try:
    with signals_as_errors():
        os.kill(os.getpid(), 15)
        time.sleep(20)
except InterruptedRunError:
    ended = True
"""
    assert __import__(module(code)).ended


class Dying:
    """Is signalled while Python takes it apart."""

    def __init__(self, signum: int) -> None:
        self.signum = signum

    def __del__(self) -> None:
        os.kill(os.getpid(), self.signum)
        time.sleep(0.01)


@EACH
def test_a_signal_in_a_finaliser_is_not_lost(
    signum: signal.Signals, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error), signals_as_errors():
        then_wait(Dying, signum)
    assert capsys.readouterr().err == ""


def test_other_errors_of_a_finaliser_are_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("wrong")

    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(str(what.exc_value)))
    with signals_as_errors():
        Failing()
    assert told == ["wrong"]


@pytest.fixture
def deaf() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("deaf")
def test_ctrl_c_that_is_ignored_stays_so() -> None:
    with signals_as_errors():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


def test_in_another_thread_nothing_is_done() -> None:
    def handler() -> object:
        with signals_as_errors():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler).result() is signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("at", ["numpy.matrixlib", "numpy._core.multiarray", "torch._C"])
def test_a_script_that_is_ended_while_it_imports_says_so_in_one_line(at: str) -> None:
    code = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {at!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
sys.path.insert(0, ".")
import Training_MSE
sys.exit(Training_MSE.main(["--GPUs", "", "--folder_path_train", "input_images/train"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (143, "error: ended by SIGTERM\n")
