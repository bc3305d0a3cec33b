"""Files of PyTorch, read as data, never as code."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from recon.errors import UserError, shortened

__all__ = ["bare_dict", "read_archive"]

# What torch warns of that the checks of this program refuse, or that is no fault.
NOTHING_NEW = ("Detected pickle protocol", "Validating sparse tensor")
DIRECTORY = 0x10  # in the attributes of an entry of a zip archive


def read_archive(path: Path) -> dict[str, Any]:
    """Read what `torch.save` wrote, if it is a dict of tensors and plain data.

    Raises:
        UserError: If it is missing, damaged, or anything else.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            for message in NOTHING_NEW:
                warnings.filterwarnings("ignore", message, UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - damaged bytes raise anything
        reason = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UserError(f"{path} is no readable PyTorch file ({shortened(reason)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, expected a dict of weights")
    return bare_dict(content)


def bare_dict(content: dict[Any, Any]) -> dict[Any, Any]:
    """A plain dict of what one holds, without attributes, which a file may give it by any name."""
    return dict(dict.items(content))


def _check_archive(path: Path) -> None:
    """Verify the checksums of a zip archive: torch.load itself does not."""
    if not zipfile.is_zipfile(path):
        return  # The format before PyTorch 1.6, which has none.
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("a compressed archive, which PyTorch does not write")
        # PyTorch reads such an entry as memory that was never written.
        if any(entry.external_attr & DIRECTORY for entry in archive.infolist()):
            raise ValueError("folders in the archive, which PyTorch does not write")
        # Of two entries of one name, checksums would be verified of one and the other be read.
        if len(set(archive.namelist())) < len(archive.namelist()):
            raise ValueError("an archive that holds a name twice, which PyTorch does not write")
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"checksum of {damaged} is wrong")
