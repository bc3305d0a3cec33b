"""Model files: written whole or not at all, and read as data, never as code.

Two kinds: a training checkpoint (the reference's keys `epoch`, `model_state_dict`,
`optimizer_state_dict` and `loss`, and what exact resume needs) and a final model (a bare state
dict with a `.json` sidecar). Both name weights as the plain network does, without wrappers.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recon.errors import UserError, quoted, shortened
from recon.files import replacing, replacing_all, spell_json
from recon.provenance import check_provenance
from recon.training.archives import bare_dict, read_archive
from recon.training.tensors import plain_tensor

__all__ = [
    "ModelFile",
    "Weights",
    "check_shapes",
    "check_weights",
    "hash_weights",
    "load_strictly",
    "read_checkpoint",
    "read_model_file",
    "save_final",
    "save_torch",
    "sidecar",
]

Weights = dict[str, Tensor]

PREFIXES = re.compile(r"(module\.|_orig_mod\.)*")  # left by DataParallel and torch.compile
NESTED = ("model_state_dict", "state_dict", "model")  # where programs put weights in a checkpoint
STATE = {"epoch", "model_state_dict", "optimizer_state_dict", "provenance", "run"}
TRIES, PAUSE = 2, 0.2  # before a mismatch counts, and seconds between them
TIED = 4  # bytes of weights for each byte of a file, at most: layers may share some
SHOWN = 3  # names of weights in an error message
HIDES = "unexpected pos"  # says torch's writer of an archive that is too short


class _MismatchError(UserError):
    """A model and a sidecar that do not belong together."""


class ModelFile(NamedTuple):
    """Weights, and what the file or its sidecar says of them."""

    weights: Weights
    provenance: dict[str, Any]  # empty where nothing is recorded


def save_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain data atomically."""
    with replacing(path) as partial:
        _save(partial, content)


def _save(partial: Path, content: Mapping[str, Any]) -> None:
    # Through a file of Python: where the disk is full, torch's own writer hides the OSError.
    with partial.open("wb") as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:
            raise _cause(error) from None


def _cause(error: BaseException) -> BaseException:
    """What ended a write: closing the archive, which is then too short, hides it."""
    while HIDES in str(error) and error.__context__ is not None:
        error = error.__context__
    return error


def save_final(path: Path, weights: Weights, provenance: Mapping[str, Any]) -> None:
    """Write a bare state dict, and beside it the sidecar that says what it is."""
    record = {**provenance, "weights_sha256": hash_weights(weights)}
    with replacing_all(path, sidecar(path)) as (partial, beside):
        _save(partial, weights)
        beside.write_text(spell_json(record), encoding="utf-8")


def sidecar(path: Path) -> Path:
    """The file that says what a final model is."""
    return path.with_suffix(".json")


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of every weight, whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.as_strided((tensor.numel(),), (1,))  # Of one value, any stride is contiguous.
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_model_file(path: Path) -> ModelFile:
    """Read a final model, a training checkpoint, or another program's file of either form.

    Raises:
        UserError: If it is missing, damaged, no model, or does not belong to its sidecar.
    """
    for _ in range(TRIES):  # A run may replace the two files meanwhile, one after the other.
        with suppress(_MismatchError):
            return _read_model_file(path)
        time.sleep(PAUSE)
    return _read_model_file(path)


def _read_model_file(path: Path) -> ModelFile:
    content = read_archive(path)
    for name in NESTED:
        if isinstance(content.get(name), dict):
            weights = check_weights(bare_dict(content[name]), path)
            record = _own_record(content, path)
            _check_hash(weights, record, path)
            return ModelFile(weights, record)
    weights = check_weights(content, path)
    return ModelFile(weights, _read_sidecar(path, weights))


def _own_record(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a checkpoint of this program says of itself, nothing for one of another.

    A file without the keys of this program, such as a checkpoint without its optimiser, may be of
    either: there, a record is one of this program if it could be.
    """
    record = content.get("provenance")
    try:
        if not isinstance(record, Mapping):
            raise TypeError(f"provenance is {type(record).__name__}, expected names and values")
        check_provenance(record)
    except (TypeError, ValueError) as error:
        if not content.keys() >= STATE:
            return {}
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} holds no record of a model ({reason}); mend or remove it"
        ) from None
    return dict(record)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint that this program wrote.

    Raises:
        UserError: If it is missing, damaged, or holds no training state.
    """
    content = read_archive(path)
    missing = STATE - content.keys()
    if missing:
        raise UserError(
            f"{path} cannot be resumed: it holds {_names(content)}, and lacks "
            f"{', '.join(sorted(missing))}; give a Model_AE_*.pth of this program"
        )
    parts = STATE - {"epoch"}
    strange = sorted(name for name in parts if not isinstance(content[name], dict))
    if strange:
        raise UserError(f"{path} cannot be resumed: {strange[0]} holds no names and values")
    weights = check_weights(bare_dict(content["model_state_dict"]), path)
    try:
        check_provenance(content["provenance"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be resumed: {error}") from None
    _check_hash(weights, content["provenance"], path)
    return content | {"model_state_dict": weights}


def _check_hash(weights: Weights, record: Mapping[str, Any], path: Path) -> None:
    """Prove that a checkpoint holds the weights that were written to it."""
    recorded = record.get("weights_sha256")
    if recorded is not None and recorded != hash_weights(weights):
        raise UserError(f"{path} is damaged: its weights are not those that were saved")


def load_strictly(model: nn.Module, weights: Weights, path: Path) -> None:
    """Load weights that fit the network exactly, or none at all.

    Raises:
        UserError: If a name, a shape or the kind of number differs, or a value is impossible.
    """
    check_shapes(model, weights, path)
    own = model.state_dict()
    for name, value in weights.items():
        if _kind(value) != _kind(own[name]):
            raise UserError(f"{path} is not usable: {name} holds numbers of {value.dtype}")
        # As they will be: what is finite in 64 bits need not be in 32.
        if not torch.isfinite(value.to(own[name].dtype)).all():
            raise UserError(f"{path} is not usable: {name} holds values that are not finite")
        if name.endswith("running_var") and (value < 0).any():
            raise UserError(f"{path} is not usable: {name} holds variances below 0")
    model.load_state_dict(weights, strict=True)


def check_shapes(model: nn.Module, weights: Weights, path: Path) -> None:
    """Prove that weights are those of the network by name and shape.

    Raises:
        UserError: If a name or a shape differs.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        raise UserError(
            f"{path} holds another network: {_difference(found, expected)}; architecture, "
            f"tile_size, color_mode and the network's own settings must be those of its training"
        )


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    """Whether a tensor holds fractions, complex numbers, or neither, and truth values."""
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype is torch.bool


def check_weights(content: Mapping[str, Any], path: Path) -> Weights:
    """The weights of a plain network, by their names in it, with nothing but their values.

    Raises:
        UserError: If there is anything else among them.
    """
    weights = {_bare(name): value for name, value in content.items()}
    named = all(isinstance(name, str) for name in content)
    if not (weights and named and all(isinstance(value, Tensor) for value in weights.values())):
        raise UserError(f"{path} holds {_names(content)}, expected the weights of a network")
    if len(weights) < len(content):
        count = Counter(map(_bare, content))
        twice = next(n for n in content if count[_bare(n)] > 1 and n != _bare(n))
        names = [shortened(str(name)) for name in (_bare(twice), twice)]
        raise UserError(f"{path} holds {names[0]} twice, the second time as {names[1]}")
    for name, value in weights.items():
        plain, shown = plain_tensor(value), shortened(name)
        if plain is None:
            raise UserError(f"{path} is not usable: {shown} is no plain tensor with values")
        if plain.nbytes > plain.untyped_storage().nbytes():
            raise UserError(f"{path} is not usable: {shown} holds fewer values than its shape has")
        weights[name] = plain
    held, size = sum(value.nbytes for value in weights.values()), path.stat().st_size
    if held > TIED * size:  # Reading them would take the time of a file so large.
        raise UserError(
            f"{path} is not usable: its weights are {held} bytes in a file of {size}; write every "
            f"weight once"
        )
    return weights


def _bare(name: object) -> str:
    """The name of a weight in the plain network; nothing for what is no text."""
    return PREFIXES.sub("", name, count=1) if isinstance(name, str) else ""


def _read_sidecar(path: Path, weights: Weights) -> dict[str, Any]:
    beside = sidecar(path)
    if not beside.is_file():
        return {}
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
        expected = record["weights_sha256"]
        check_provenance(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{beside} is no record of a model ({error}); remove or mend it") from None
    if expected != hash_weights(weights):
        raise _MismatchError(f"{beside} describes other weights than {path}; remove or mend it")
    return dict(record)


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    lacking = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    other = sorted(n for n in found.keys() & expected.keys() if found[n] != expected[n])
    parts = [f"lacks {_some(lacking)}"] if lacking else []
    parts += [f"has {_some(extra)} besides"] if extra else []
    counts = f"it has {len(found)} weights, expected {len(expected)}"
    parts = [f"{counts}; it {' and '.join(parts)}"] if parts else []
    parts += [f"its {shortened(n)} is {found[n]}, expected {expected[n]}" for n in other[:1]]
    return "; ".join(parts)


def _some(names: Collection[Any], spell: Callable[[Any], str] = shortened) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(spell, islice(names, SHOWN))) + more


def _names(content: Mapping[Any, Any]) -> str:
    return _some(content, quoted) or "nothing"
