import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recon.data.forking import signals_held
from recon.signals import ENDING_SIGNALS

HEAD = """
import os, signal, sys, time
import torch
from recon.data.loaders import Batches, make_loader
from recon.data.processes import map_isolated

os.setsid()
os.register_at_fork(after_in_child=lambda: time.sleep(0.3))  # so long they are unprepared

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.zeros(3, 4, 4, dtype=torch.uint8)

def signal_all():
    signal.signal(signal.{signum}, signal.SIG_IGN)
    os.killpg(0, signal.{signum})

"""
LOADER = """
loader = make_loader(Images(), Batches(8, 2), num_workers=2, pin_memory=False)
batches = iter(loader)
signal_all()
print(sum(len(batch.indices) for batch in batches))
loader.end()
"""
CREW = """
def items():
    yield from range(16)  # The first chunk: the processes begin.
    signal_all()
    yield from range(16, 20)

print(sum(map_isolated(abs, items(), processes=2, lost=lambda item: 1000)))
"""


@pytest.mark.parametrize("signum", ENDING_SIGNALS)
@pytest.mark.parametrize(("work", "result"), [(LOADER, 8), (CREW, sum(range(20)))])
def test_a_signal_that_reaches_processes_at_their_start_does_no_harm(
    work: str, result: int, signum: signal.Signals
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAD.format(signum=signum.name) + work],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{result}\n", "")


@pytest.mark.parametrize("signum", ENDING_SIGNALS)
def test_signals_wait_while_they_are_held(signum: signal.Signals) -> None:
    came: list[int] = []
    before = signal.signal(signum, lambda number, _frame: came.append(number))
    try:
        with signals_held():
            for _ in range(2):
                os.kill(os.getpid(), signum)
            assert came == []
        assert came == [signum]
        os.kill(os.getpid(), signum)
        assert came == [signum, signum]
    finally:
        signal.signal(signum, before)


def test_nothing_is_held_outside_of_the_main_thread() -> None:
    def handler() -> object:
        with signals_held():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler).result() is signal.getsignal(signal.SIGINT)


def test_what_is_ignored_stays_so_in_every_process() -> None:
    """As under nohup, when its terminal is closed: a worker that minded would end the run."""
    code = """
import os, signal, torch
from recon.data.forking import signals_held
from recon.signals import heeded
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with signals_held():
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert set(heeded()) == {signal.SIGINT, signal.SIGTERM}
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
