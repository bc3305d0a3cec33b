"""Images that the threads of a CPU share, so that its cores need not wait at every layer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch

__all__ = ["spreading"]


@contextmanager
def spreading(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose operators are not spread over further ones, if there are several."""
    before = torch.get_num_threads()
    alone = partial(torch.set_num_threads, 1 if threads > 1 else before)
    pool = ThreadPoolExecutor(threads, initializer=alone)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # Threads yet to come would otherwise begin with theirs.
