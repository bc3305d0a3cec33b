"""The bar that shows how far a run over images is."""

from typing import NoReturn

from tqdm import tqdm

from recon.ranks import Ranks
from recon.training.meter import bar_hidden

__all__ = ["progress_bar"]


def progress_bar(ranks: Ranks, title: str, total: int, done: int = 0) -> "tqdm[NoReturn]":
    """A bar on the first rank, where there is a terminal.

    Args:
        ranks: Of the run.
        title: Before the bar.
        total: Images.
        done: Images that are done already.
    """
    hidden = bar_hidden(first=ranks.first)
    return tqdm(total=total, initial=done, desc=title, unit="image", leave=False, disable=hidden)
