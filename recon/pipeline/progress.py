"""The bar that shows how far a run over images is."""

from typing import NoReturn

from tqdm import tqdm

from recon.ranks import Ranks

__all__ = ["progress_bar"]


def progress_bar(ranks: Ranks, title: str, total: int, done: int = 0) -> "tqdm[NoReturn]":
    """A bar on the first rank, where there is a terminal.

    Args:
        ranks: Of the run.
        title: Before the bar.
        total: Images.
        done: Images that are done already.
    """
    hidden = None if ranks.first else True  # None: tqdm looks for a terminal.
    return tqdm(total=total, initial=done, desc=title, unit="image", leave=False, disable=hidden)
