"""What the engine needs of the paths of a folder dataset."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, overload

__all__ = ["Paths", "Relatives", "every"]


class Paths(Protocol):
    """Paths of images below a folder, kept compactly."""

    folder: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...

    def relative(self, index: int, /) -> str:
        """The path below the folder."""

    def select(self, indices: Iterable[int], /) -> "Paths":
        """The paths at these indices."""


class Relatives(Sequence[str]):
    """The paths below their folder, one at a time: a list of a million takes 100 MB."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.paths.relative(i) for i in range(len(self))[index]]
        return self.paths.relative(range(len(self))[index])


def every(paths: Paths) -> Iterator[str]:
    """Each full path in turn."""
    return (paths[index] for index in range(len(paths)))
