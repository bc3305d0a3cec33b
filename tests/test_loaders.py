import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from itertools import product
from threading import Timer

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.data.loaders import (
    Batch,
    Batches,
    Failure,
    make_loader,
    to_unit_range,
)
from recon.data.sampling import draw_epoch

SIZES = list(product(range(1, 41), range(1, 13)))  # images, batch size

# Python 3.12 warns of any fork beside a thread; the workers here touch none.
several_workers = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


class Plain:
    """A dataset of 3x2x2 images that hold their own index; some cannot be read."""

    def __init__(
        self,
        count: int,
        *,
        errors: dict[int, Exception] | None = None,
        deep: tuple[int, ...] = (),
    ) -> None:
        self.count, self.errors, self.deep = count, errors or {}, deep

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if index in self.errors:
            raise self.errors[index]
        if index in self.deep:
            return torch.full((3, 2, 2), 1 / (1 + index))
        return torch.full((3, 2, 2), index, dtype=torch.uint8)


class WhoReads(Plain):
    """Gives the process that reads, and whether Ctrl-C would end it."""

    def __getitem__(self, index: int) -> Tensor:
        ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return torch.tensor([float(os.getpid()), float(ignores)])


def shuffled(count: int, seed: int) -> Callable[[int], np.ndarray]:
    return lambda epoch: draw_epoch([np.arange(count)], count, seed=seed, epoch=epoch)


def read(dataset: Plain, batches: Batches, num_workers: int = 0) -> list[Batch]:
    return list(make_loader(dataset, batches, num_workers=num_workers, pin_memory=False))


def one_batch(dataset: Plain) -> Batch:
    batches = read(dataset, Batches(len(dataset), len(dataset)))
    assert len(batches) == 1
    return batches[0]


# Batches


@pytest.mark.parametrize("epoch", [0, 3])
def test_each_index_comes_once_per_epoch(epoch: int) -> None:
    for count, batch_size in SIZES:
        batches = Batches(count, batch_size, shuffled(count, seed=1))
        batches.epoch = epoch
        assert sorted(index for batch in batches for index in batch) == list(range(count))


def test_sizes_differ_by_at_most_one_and_keep_to_the_batch_size() -> None:
    for count, batch_size in SIZES:
        sizes = [len(batch) for batch in Batches(count, batch_size)]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size


def test_there_are_no_more_batches_than_are_needed() -> None:
    for count, batch_size in SIZES:
        batches = Batches(count, batch_size)
        assert len(batches) == len(list(batches)) == -(-count // batch_size)


def test_no_batch_holds_one_image_where_more_would_fit() -> None:
    tried = [(c, b) for c, b in SIZES if b > 2 and c > b]
    assert (13, 12) in tried
    assert all(len(batch) > 1 for c, b in tried for batch in Batches(c, b))


def test_without_an_order_the_images_come_as_the_dataset_has_them() -> None:
    batches = Batches(7, 3)
    batches.epoch = 5
    assert list(batches) == [[0, 1, 2], [3, 4], [5, 6]]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = Batches(50, 8, shuffled(50, seed))
        batches.epoch = epoch
        torch.manual_seed(epoch)
        np.random.seed(epoch)  # noqa: NPY002 - the global state must not matter
        return list(batches)

    first = order(0, 0)
    order(1, 1)
    assert order(0, 0) == first
    assert order(1, 0) != first
    assert order(0, 1) != first


def test_an_epoch_goes_on_exactly_where_it_was_left() -> None:
    batches = Batches(23, 4, shuffled(23, seed=0))
    batches.epoch = 2
    whole = list(batches)
    for start in range(len(whole) + 1):
        batches.start = start
        assert list(batches) == whole[start:]
        assert len(batches) == len(whole) - start


def test_a_process_takes_its_share_of_every_batch() -> None:
    whole = list(Batches(11, 4))
    shares = [list(Batches(11, 4, share=lambda batch, r=rank: batch[r::2])) for rank in (0, 1)]
    assert [len(share) for share in shares] == [len(whole)] * 2
    for batch, one, other in zip(whole, *shares, strict=True):
        assert sorted(one + other) == sorted(batch)


def test_an_order_may_draw_fewer_or_more_images_than_there_are() -> None:
    assert [len(b) for b in Batches(10, 4, lambda _: np.arange(5))] == [3, 2]
    assert len(Batches(10, 4, lambda _: np.zeros(21, np.int64))) == 6


# Images


def test_a_batch_holds_the_images_of_its_indices() -> None:
    for batch in read(Plain(10), Batches(10, 4, shuffled(10, seed=0))):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch.indices), 3, 2, 2)
        assert batch.images[:, 0, 0, 0].tolist() == batch.indices.tolist()
        assert batch.indices.dtype == torch.int64
        assert batch.failures == []


def test_an_image_keeps_its_place_in_the_batch_that_was_asked_for() -> None:
    dataset = Plain(5, errors={3: ValueError("three")})
    batch = read(dataset, Batches(5, 5, lambda _: np.array([4, 3, 0, 2, 1])))[0]
    assert batch.indices.tolist() == [4, 0, 2, 1]
    assert batch.places.tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("error", [ValueError("a.png: damaged"), OSError("a.png: damaged")])
def test_an_image_that_cannot_be_read_is_left_out_and_reported(error: Exception) -> None:
    batch = one_batch(Plain(4, errors={2: error}))
    assert batch.indices.tolist() == [0, 1, 3]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 3]
    assert batch.places.tolist() == [0, 1, 3]
    assert batch.failures == [Failure(2, "a.png: damaged")]


def test_a_batch_without_any_readable_image_is_empty() -> None:
    batch = one_batch(Plain(2, errors={0: ValueError("zero"), 1: OSError(errno.EIO, "one")}))
    assert len(batch.images) == len(batch.indices) == len(batch.places) == 0
    assert batch.indices.dtype == batch.places.dtype == torch.int64
    assert batch.failures == [Failure(0, "zero"), Failure(1, f"[Errno {errno.EIO}] one")]


@pytest.mark.parametrize("error", [RuntimeError("fault"), KeyError("fault"), TypeError("fault")])
def test_a_fault_of_the_program_is_not_taken_for_a_bad_image(error: Exception) -> None:
    with pytest.raises(type(error), match="fault"):
        one_batch(Plain(2, errors={1: error}))


def test_deep_and_8_bit_images_meet_in_one_batch_in_the_unit_range() -> None:
    batch = one_batch(Plain(3, deep=(1,)))
    assert batch.images.dtype == torch.float32
    expected = torch.tensor([0.0, 1 / 2, 2 / 255])
    assert torch.equal(batch.images[:, 0, 0, 0], expected)


def test_deep_images_alone_stay_as_they_are() -> None:
    batch = one_batch(Plain(2, deep=(0, 1)))
    assert batch.images[:, 0, 0, 0].tolist() == [1.0, 0.5]


def test_8_bit_levels_become_fractions_of_255() -> None:
    levels = to_unit_range(torch.arange(256, dtype=torch.uint8))
    assert levels.dtype == torch.float32
    assert torch.equal(levels, torch.arange(256) / 255)


def test_float_images_are_in_the_unit_range_already() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert to_unit_range(images) is images


# Workers


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are started afresh")
def test_workers_are_forked_whatever_the_default_is() -> None:
    """A cache in memory cannot be pickled, nor be shared in any other way."""
    loader = make_loader(Plain(4), Batches(4, 2), num_workers=2, pin_memory=False)
    assert loader.multiprocessing_context.get_start_method() == "fork"


@several_workers
def test_worker_processes_give_the_same_batches_in_the_same_order() -> None:
    dataset = Plain(11, errors={4: ValueError("four")}, deep=(7,))
    alone, together = (
        read(dataset, Batches(11, 3, shuffled(11, seed=0)), workers) for workers in (0, 2)
    )
    assert len(alone) == 4
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)
        assert one.failures == other.failures


@several_workers
def test_workers_live_on_and_follow_the_epoch_and_the_start() -> None:
    batches = Batches(8, 2, shuffled(8, seed=0))
    loader = make_loader(WhoReads(8), batches, num_workers=2, pin_memory=False)
    readers, orders = [], []
    for epoch in (0, 1):
        batches.epoch, batches.start = epoch, epoch
        epoch_of_batches = list(loader)
        readers.append({int(n) for batch in epoch_of_batches for n in batch.images[:, 0]})
        orders.append([batch.indices.tolist() for batch in epoch_of_batches])
        assert orders[-1] == list(batches)
        assert all(batch.images[:, 1].all() for batch in epoch_of_batches), "Ctrl-C ends a worker"
    assert readers[0] == readers[1]
    assert os.getpid() not in readers[0]
    assert [len(order) for order in orders] == [4, 3]


@several_workers
@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_draws_nothing_from_the_random_state_of_the_run(num_workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read(Plain(4), Batches(4, 2), num_workers)
    assert torch.equal(torch.get_rng_state(), before)


@several_workers
def test_workers_that_were_started_early_serve_every_epoch_whole() -> None:
    batches = Batches(6, 2, shuffled(6, seed=1))
    loader = make_loader(WhoReads(6), batches, num_workers=1, pin_memory=False)
    loader.start()
    (worker,) = loader._iterator._workers
    for epoch in range(3):
        batches.epoch, batches.start = epoch, epoch % 2
        expected = list(batches)
        found = list(loader)
        assert [batch.indices.tolist() for batch in found] == expected
        assert {int(batch.images[0, 0]) for batch in found} == {worker.pid}
    loader.end()


@several_workers
def test_what_a_worker_hands_over_lies_in_shared_memory_already() -> None:
    """Handing over would move it there, and fail unseen where there is no room."""
    with make_loader(Plain(2), Batches(2, 2), num_workers=1, pin_memory=False) as loader:
        (worker,) = iter(loader)
    assert all(tensor.is_shared() for tensor in worker[:3])
    (alone,) = read(Plain(2), Batches(2, 2))
    assert not any(tensor.is_shared() for tensor in alone[:3])


@several_workers
def test_workers_outlive_every_sigterm_of_others() -> None:
    with make_loader(Plain(4), Batches(4, 2), num_workers=1, pin_memory=False) as loader:
        batches = iter(loader)
        next(batches)
        (worker,) = loader._iterator._workers
        for _ in range(2):
            os.kill(worker.pid, signal.SIGTERM)
        assert next(batches).indices.tolist() == [2, 3]


class Stuck(Plain):
    """Reads its last image for ever, as from a disk that is gone."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.hangs = multiprocessing.get_context("fork").Event()

    def __getitem__(self, index: int) -> Tensor:
        if index == self.count - 1:
            self.hangs.set()
            threading.Event().wait()
        return super().__getitem__(index)


@several_workers
def test_workers_that_hang_are_ended_without_a_word(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon.data.loaders.PATIENCE", 0.1)
    images = Stuck(4)
    with make_loader(images, Batches(4, 2), num_workers=2, pin_memory=False) as loader:
        assert len(next(iter(loader)).indices) == 2
        assert images.hangs.wait(60)
        workers = loader._iterator._workers
    assert [worker.exitcode for worker in workers] == [0, -signal.SIGKILL]
    assert capfd.readouterr() == ("", "")


@several_workers
def test_at_ctrl_c_nobody_waits_for_workers_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.data.loaders.PATIENCE", 1000)
    images = Stuck(2)
    loader = make_loader(images, Batches(2, 2), num_workers=1, pin_memory=False)
    loader.start()
    assert images.hangs.wait(60)
    (worker,) = loader._iterator._workers
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            loader.end()
    finally:
        signal.signal(signal.SIGINT, before)
    worker.join()
    assert worker.exitcode == -signal.SIGKILL


def test_without_workers_nothing_is_started() -> None:
    loader = make_loader(Plain(2), Batches(2, 2), num_workers=0, pin_memory=False)
    loader.start()
    assert loader._iterator is None


@pytest.mark.skipif(sys.platform != "linux", reason="cores of a process are known on Linux alone")
@several_workers
def test_more_processes_than_cores_are_told_once_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    for _ in range(2):
        assert len(read(Plain(4), Batches(4, 2), num_workers=5)) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "num_workers = 5, but this process has 1 core: lower it if reading is slow"
    ]
