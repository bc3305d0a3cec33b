import io
import json
import os
import pickle
import re
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from Auto_encoder import AutoEncoder
from recon.errors import InterruptedRunError, UserError
from recon.training.checkpoint import (
    hash_weights,
    load_strictly,
    read_checkpoint,
    read_model_file,
    save_final,
    save_torch,
    sidecar,
)

Weights = dict[str, Tensor]
DISK_FULL = OSError(28, "No space left on device")


class OfAnotherProgram(nn.Module):
    """The published network, written down anew: a table of layers."""

    def __init__(self) -> None:
        super().__init__()
        down = [(3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2), (256, 512, 2), (512, 512, 2)]
        up = [(512, 512), (512, 256), (256, 128), (128, 64), (64, 32)]
        encoder = [nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in down]
        decoder = [nn.ConvTranspose2d(a, b, 3, 2, 1, 1) for a, b in up]
        last = [nn.Conv2d(32, 3, 3, 1, 1), nn.Sigmoid()]
        self.encoder = nn.Sequential(*self.normed(encoder))
        self.decoder = nn.Sequential(*self.normed(decoder), *last)

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))

    @staticmethod
    def normed(layers: list[Any]) -> list[nn.Module]:
        return [
            module
            for layer in layers
            for module in (layer, nn.BatchNorm2d(layer.out_channels), nn.LeakyReLU(0.01))
        ]


@pytest.fixture
def weights(network: Callable[[], nn.Module]) -> Weights:
    torch.manual_seed(3)
    return dict(network().state_dict())


@pytest.fixture
def trained(
    train: Callable[..., Weights], write_images: Callable[..., Path], tmp_path: Path
) -> Path:
    """The folder that a run of one epoch leaves."""
    write_images(tmp_path / "train", 4)
    train(num_epochs=1)
    return tmp_path / "out"


def are_equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoint(weights: Weights, record: Any) -> dict[str, Any]:
    """What a run keeps, as far as an evaluation looks at it."""
    others = {"epoch": 1, "optimizer_state_dict": {}, "run": {}}
    return {"model_state_dict": weights, "provenance": record, **others}


def refusal(path: Path, read: Callable[[Path], Any] = read_model_file) -> str:
    """The message with which a file is refused: one line that names it."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message or str(sidecar(path)) in message
    return message


# What is written


def test_a_checkpoint_has_the_keys_of_the_reference(trained: Path) -> None:
    saved = torch.load(trained / "Model_AE_epoch_001.pth", weights_only=True)
    assert list(saved)[:4] == ["epoch", "model_state_dict", "optimizer_state_dict", "loss"]
    assert saved["epoch"] == 1
    assert isinstance(saved["loss"], float)


def test_a_final_model_is_a_bare_state_dict_that_loads_strictly_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "Final_Model_AE_MSE.pth"
    model = AutoEncoder().eval()
    save_final(path, model.state_dict(), {})
    other = OfAnotherProgram().eval()
    other.load_state_dict(torch.load(path, weights_only=True), strict=True)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), other(images), rtol=1e-4, atol=1e-5)


def test_the_weights_of_a_final_model_lie_in_plain_order_and_not_channels_innermost(
    trained: Path,
) -> None:
    saved = torch.load(trained / "Final_Model_AE_MSE.pth", weights_only=True)
    assert all(value.is_contiguous() for value in saved.values())


def test_the_sidecar_says_what_the_model_is(trained: Path) -> None:
    path = trained / "Final_Model_AE_MSE.pth"
    record = json.loads(sidecar(path).read_text(encoding="utf-8"))
    assert record["weights_sha256"] == hash_weights(torch.load(path, weights_only=True))
    assert record["preparation"] == {
        "tile_size": [16, 16],
        "channels": 3,
        "input_normalization": "imagenet",
        "intensity_range": None,
        "slice_axis": 2,
    }
    assert record["settings"]["num_epochs"] == 1
    assert record["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert record["results"]["epochs"] == 1
    assert len(record["data"]["train"]["fingerprint"]) == 64


def test_a_checkpoint_says_what_it_is(trained: Path) -> None:
    saved = torch.load(trained / "Model_AE_epoch_001.pth", weights_only=True)
    record = saved["provenance"]
    assert record["weights_sha256"] == hash_weights(saved["model_state_dict"])
    assert record["results"]["epochs"] == 1
    assert record["results"]["seconds"] >= 0
    assert record["settings"]["seed"] == 0
    assert {"device", "precision", "preparation", "packages", "commit"} <= record.keys()


def test_a_checkpoint_of_other_weights_than_it_records_is_refused(
    trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "Model_AE_epoch_001.pth"
    saved = torch.load(trained / "Model_AE_epoch_001.pth", weights_only=True)
    next(iter(saved["model_state_dict"].values())).view(-1)[0] += 1e-3
    torch.save(saved, path)
    for read in (read_model_file, read_checkpoint):
        with pytest.raises(UserError, match="damaged: its weights are not those that were saved"):
            read(path)


def test_the_hash_depends_on_names_values_and_shapes_and_on_nothing_else(weights: Weights) -> None:
    original = hash_weights(weights)
    assert hash_weights(dict(reversed(weights.items()))) == original
    name = "encoder.0.weight"
    rearranged = weights[name].contiguous(memory_format=torch.channels_last)
    assert hash_weights(weights | {name: rearranged}) == original
    assert hash_weights(weights | {name: weights[name].reshape(-1)}) != original
    assert hash_weights(weights | {name: weights[name].double()}) != original
    changed = weights[name].clone()
    changed[0, 0, 0, 0] = torch.nextafter(changed[0, 0, 0, 0], torch.tensor(9.0))
    assert hash_weights(weights | {name: changed}) != original


def test_a_checkpoint_can_be_evaluated_like_a_final_model(trained: Path) -> None:
    final = read_model_file(trained / "Final_Model_AE_MSE.pth")
    checkpoint = read_model_file(trained / "Model_AE_epoch_001.pth")
    assert are_equal(final.weights, checkpoint.weights)
    assert list(checkpoint.provenance["preparation"]["tile_size"]) == [16, 16]


# Files of other programs


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_prefixes_of_wrappers_are_stripped(prefix: str, weights: Weights, tmp_path: Path) -> None:
    save_torch(tmp_path / "a.pth", {prefix + name: value for name, value in weights.items()})
    assert are_equal(read_model_file(tmp_path / "a.pth").weights, weights)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model"])
def test_weights_are_found_inside_checkpoints_of_other_programs(
    key: str, weights: Weights, tmp_path: Path
) -> None:
    save_torch(tmp_path / "a.pth", {"epoch": 3, key: weights, "loss": 0.1})
    file = read_model_file(tmp_path / "a.pth")
    assert are_equal(file.weights, weights)
    assert file.provenance == {}


def test_a_name_that_two_prefixes_hide_is_refused(weights: Weights, tmp_path: Path) -> None:
    zeros = {f"module.{name}": torch.zeros_like(value) for name, value in weights.items()}
    save_torch(tmp_path / "a.pth", weights | zeros)
    assert "encoder.0.weight" in refusal(tmp_path / "a.pth")


def test_a_name_under_two_prefixes_is_refused(weights: Weights, tmp_path: Path) -> None:
    both = {f"{p}.{n}": v for p in ("module", "_orig_mod") for n, v in weights.items()}
    save_torch(tmp_path / "a.pth", both)
    assert "encoder.0.weight twice" in refusal(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantized"])
def test_tensors_without_plain_values_are_refused(
    kind: str, weights: Weights, tmp_path: Path
) -> None:
    name = "encoder.0.weight"
    value = weights[name]
    odd = {
        "sparse": lambda: value.to_sparse(),
        "meta": lambda: value.to("meta"),
        "quantized": lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    }[kind]()
    torch.save(weights | {name: odd}, tmp_path / "a.pth")
    refusal(tmp_path / "a.pth")


ODD: dict[str, Callable[[], Any]] = {
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "negative": lambda: torch._neg_view(torch.ones(2)),
    "conjugate": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    **{
        name: lambda name=name: torch.zeros(8, dtype=torch.uint8).view(getattr(torch, name))
        for name in ("float4_e2m1fn_x2", "bits8", "bits16", "bits1x8", "float8_e8m0fnu", "uint16")
        if hasattr(torch, name)  # Releases of torch know other ones.
    },
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_odd_kinds_are_refused(kind: str, tmp_path: Path) -> None:
    save_final(tmp_path / "a.pth", {"w": torch.ones(1)}, {})
    torch.save({"w": ODD[kind]()}, tmp_path / "a.pth")
    assert "w is no plain tensor" in refusal(tmp_path / "a.pth")


def test_attributes_of_weights_and_of_their_dict_are_left_out(tmp_path: Path) -> None:
    odd = torch.ones(2)
    content: OrderedDict[str, Any] = OrderedDict()
    odd.detach = odd.cpu = odd.contiguous = 5  # type: ignore[assignment,method-assign]
    content["w"] = odd
    content.keys = content.get = 5  # type: ignore[assignment,method-assign]
    for inside in (content, {"model_state_dict": content}):
        torch.save(inside, tmp_path / "a.pth")
        weights = read_model_file(tmp_path / "a.pth").weights
        assert hash_weights(weights) == hash_weights({"w": torch.ones(2)})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_refused(
    dtype: torch.dtype, weights: Weights, tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    name = "encoder.0.weight"
    with pytest.raises(UserError, match=f"{name} holds numbers of {dtype}"):
        load_strictly(network(), weights | {name: weights[name].to(dtype)}, tmp_path / "a.pth")


def test_numbers_too_large_for_the_network_are_refused(
    weights: Weights, tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    name = "encoder.0.weight"
    large = torch.full_like(weights[name], 1e300, dtype=torch.float64)
    with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
        load_strictly(network(), weights | {name: large}, tmp_path / "a.pth")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), InterruptedRunError(15), OSError(28, "full")]
)
def test_what_ends_a_write_is_what_is_raised(
    error: BaseException, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 0:
                raise error
            return super().write(data) or 0

    monkeypatch.setattr(Path, "open", lambda path, mode: Failing(str(path), mode))
    with pytest.raises(type(error)):
        save_torch(tmp_path / "a.pth", weights)
    assert not list(tmp_path.iterdir())


def test_a_signal_while_reading_is_no_damage(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any, **__: Any) -> None:
        raise InterruptedRunError(15)

    save_torch(tmp_path / "a.pth", weights)
    monkeypatch.setattr(torch, "load", end)
    with pytest.raises(InterruptedRunError):
        read_model_file(tmp_path / "a.pth")


def test_a_record_of_another_program_is_no_record_of_ours(weights: Weights, tmp_path: Path) -> None:
    save_torch(tmp_path / "a.pth", {"state_dict": weights, "provenance": "a scanner"})
    assert read_model_file(tmp_path / "a.pth").provenance == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_half_precision_load(
    dtype: torch.dtype, weights: Weights, tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    half = {n: v.to(dtype) if v.is_floating_point() else v for n, v in weights.items()}
    save_torch(tmp_path / "a.pth", half)
    model = network()
    load_strictly(model, read_model_file(tmp_path / "a.pth").weights, tmp_path / "a.pth")
    loaded = model.state_dict()
    assert loaded["encoder.0.weight"].dtype == torch.float32
    assert all(torch.equal(loaded[name], half[name].to(loaded[name].dtype)) for name in half)


def test_the_format_before_zip_archives_loads(weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert are_equal(read_model_file(tmp_path / "a.pth").weights, weights)


# Files that must be refused


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "missing" in refusal(tmp_path / "none.pth")
    assert "missing" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"a text, no model\n" * 50])
def test_what_is_no_pytorch_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    assert "no readable PyTorch file" in refusal(tmp_path / "a.pth")


def test_a_truncated_file_is_refused_wherever_it_ends(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_torch(path, weights)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        refusal(path)


def test_a_flipped_bit_is_refused_or_harmless_wherever_it_is(trained: Path, tmp_path: Path) -> None:
    """A zip archive holds bytes that do not matter, such as dates; all others must count."""
    content = (trained / "Model_AE_epoch_001.pth").read_bytes()
    original = torch.load(io.BytesIO(content), weights_only=True)
    path, generator, refused = tmp_path / "a.pth", np.random.default_rng(0), 0
    places = [(int(p), 1 << int(generator.integers(8))) for p in range(0, len(content), 61)]
    for place, bit in places:
        damaged = bytearray(content)
        damaged[place] ^= bit
        path.write_bytes(damaged)
        try:
            loaded = read_checkpoint(path)
        except UserError:
            refused += 1
            continue
        assert are_equal(loaded["model_state_dict"], original["model_state_dict"]), place
        assert repr(loaded["optimizer_state_dict"]) == repr(original["optimizer_state_dict"]), place
        assert repr(loaded["run"]) == repr(original["run"]), place
    assert refused > len(places) / 2


def test_a_flipped_bit_in_the_directory_of_the_archive_is_refused_or_harmless(
    tmp_path: Path,
) -> None:
    """The checksums do not cover it, and it decides what is read."""
    path, original = tmp_path / "a.pth", {"w": torch.arange(6.0), "b": torch.ones(2)}
    save_torch(path, original)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    for place in range(8 * start, 8 * len(content), 3):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            loaded = read_model_file(path).weights
        except UserError:
            continue
        assert are_equal(loaded, original), divmod(place, 8)


def test_a_flipped_bit_in_any_weight_is_refused(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_torch(path, weights)
    content = path.read_bytes()
    for value in weights.values():
        raw = value.numpy().tobytes()
        place = content.find(raw)
        if len(raw) < 24 or place < 0:
            continue
        damaged = bytearray(content)
        damaged[place + 5] ^= 1
        path.write_bytes(damaged)
        assert "checksum" in refusal(path)


class RunsACommand:
    """Unpickled with trust, this creates a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


class Evaluates(RunsACommand):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('pathlib').Path({str(self.proof)!r}).touch()",)


def as_legacy_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def as_legacy_file(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [torch.save, as_legacy_file, as_legacy_pickle])
@pytest.mark.parametrize("payload", [RunsACommand, Evaluates])
@pytest.mark.parametrize("inside", ["alone", "among weights", "as state of a checkpoint"])
def test_a_file_that_tries_to_run_code_is_refused_and_runs_none(
    write: Callable[[Any, Path], None],
    payload: type[RunsACommand],
    inside: str,
    weights: Weights,
    tmp_path: Path,
) -> None:
    proof, path = tmp_path / "proof", tmp_path / "a.pth"
    bomb = payload(proof)
    contents: dict[str, Any] = {
        "alone": bomb,
        "among weights": weights | {"encoder.9": bomb},
        "as state of a checkpoint": {"epoch": 1, "model_state_dict": weights, "run": bomb},
    }
    write(contents[inside], path)
    for read in (read_model_file, read_checkpoint):
        assert "no readable PyTorch file" in refusal(path, read)
    assert not proof.exists()
    pickle.loads(pickle.dumps(bomb))
    assert proof.exists()


def test_an_archive_that_holds_a_name_twice_is_refused(weights: Weights, tmp_path: Path) -> None:
    """Checksums would be verified of one of the two, and the other be read."""
    path = tmp_path / "a.pth"
    torch.save(weights, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    name, content = next(entry for entry in entries if "/data/" in entry[0])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, bytes(len(content)))
        archive.NameToInfo.clear()
        for entry in entries:
            archive.writestr(*entry)
    assert "a name twice" in refusal(path)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(
    weights: Weights, tmp_path: Path
) -> None:
    save_torch(tmp_path / "a.pth", weights)
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "compressed" in refusal(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("content", "found"),
    [([torch.zeros(2)], "list"), (torch.zeros(2), "Tensor"), (3, "int"), ("text", "str")],
)
def test_what_is_no_dict_is_refused_saying_what_it_is(
    content: Any, found: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth")
    assert f"holds {found}, expected" in message


@pytest.mark.parametrize(
    ("content", "found"),
    [({}, "nothing"), ({"epoch": 3, "loss": 0.1}, "'epoch', 'loss'"), ({"a": [1]}, "'a'")],
)
def test_a_dict_without_weights_is_refused_saying_what_it_holds(
    content: dict[str, Any], found: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth")
    assert f"holds {found}, expected the weights of a network" in message


def test_another_architecture_is_refused_saying_what_differs(
    weights: Weights, tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / "a.pth"

    def load(content: Weights) -> str:
        with pytest.raises(UserError) as caught:
            load_strictly(model, content, path)
        assert are_equal(dict(model.state_dict()), before)
        return str(caught.value)

    larger = torch.nn.functional.pad(weights["encoder.0.weight"], (0, 2))
    lacking = {n: v for n, v in weights.items() if n != "decoder.1.bias"}
    assert "(6, 3, 3, 5), expected (6, 3, 3, 3)" in load(weights | {"encoder.0.weight": larger})
    assert "has 8 weights, expected 9; it lacks decoder.1.bias" in load(lacking)
    assert "has skip.weight besides" in load(weights | {"skip.weight": larger})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["encoder.0.weight", "encoder.1.running_var"])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_loaded(
    value: float, name: str, weights: Weights, tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    broken = weights[name].clone()
    broken.view(-1)[-1] = value
    with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
        load_strictly(model, weights | {name: broken}, tmp_path / "a.pth")
    assert are_equal(dict(model.state_dict()), before)


def test_variances_below_zero_are_refused(
    weights: Weights, tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    spoilt = weights | {"encoder.1.running_var": -weights["encoder.1.running_var"]}
    with pytest.raises(UserError, match=r"encoder\.1\.running_var holds variances below 0"):
        load_strictly(network(), spoilt, tmp_path / "a.pth")


def test_a_sidecar_of_other_weights_is_refused(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_final(path, weights, {})
    save_torch(path, weights | {"encoder.0.bias": weights["encoder.0.bias"] + 1})
    assert "describes other weights" in refusal(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "{}", '{"weights_sha256": 3}', "null", "\udcff", "[" * 200_000],
    ids=lambda text: text[:20],
)
def test_a_sidecar_that_is_no_record_is_refused(
    text: str, weights: Weights, tmp_path: Path
) -> None:
    save_torch(tmp_path / "a.pth", weights)
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refusal(tmp_path / "a.pth")


SPOILT: list[dict[str, Any]] = [
        {"settings": None}, {"settings": {"noise_std": "x"}}, {"settings": {"noise_std": True}},
        {"network": None}, {"preparation": 3}, {"data": None}, {"data": {"train": None}},
        {"data": {"train": {"members": "abc"}}}, {"data": {"train": {"members": 5}}},
        {"data": {"train": {"members": "AAAA"}}},
]  # fmt: skip


@pytest.mark.parametrize("record", SPOILT, ids=str)
def test_a_checkpoint_whose_record_is_spoilt_is_refused(
    record: dict[str, Any], weights: Weights, tmp_path: Path
) -> None:
    save_torch(tmp_path / "a.pth", checkpoint(weights, record))
    assert "holds no record of a model" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [torch.ones(2), 10**400, (1, {2})], ids=["tensor", "int", "set"])
@pytest.mark.parametrize("read", [read_model_file, read_checkpoint])
def test_a_checkpoint_whose_record_is_no_plain_data_is_refused(
    read: Callable[[Path], Any], value: Any, weights: Weights, tmp_path: Path
) -> None:
    record = {"objective": value, "settings": {"seed": value}}
    save_torch(tmp_path / "a.pth", checkpoint(weights, record))
    assert re.search("settings.seed is (Tensor|set|a whole)", refusal(tmp_path / "a.pth", read))


def test_a_record_of_another_program_may_hold_anything(weights: Weights, tmp_path: Path) -> None:
    record = {"settings": 3, "network": {"name": "unet"}, "when": torch.ones(2)}
    save_torch(tmp_path / "a.pth", {"state_dict": weights, "epoch": 3, "provenance": record})
    assert read_model_file(tmp_path / "a.pth").provenance == {}


def test_a_checkpoint_of_this_program_with_another_record_is_refused(
    trained: Path, tmp_path: Path
) -> None:
    content = torch.load(trained / "Last_Model_AE.pth", weights_only=True)
    save_torch(tmp_path / "a.pth", content | {"provenance": "a scanner"})
    assert "holds no record of a model" in refusal(tmp_path / "a.pth")


def test_a_weight_of_one_value_is_hashed_whatever_its_stride(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.pth", {"w": torch.ones(1)}
    save_final(path, plain, {})
    torch.save({"w": torch.ones(1).as_strided((1,), (0,))}, path)
    assert hash_weights(read_model_file(path).weights) == hash_weights(plain)


@pytest.mark.parametrize("count", [3, 10**14])
def test_a_weight_with_fewer_values_than_its_shape_has_is_refused(
    count: int, tmp_path: Path
) -> None:
    save_final(tmp_path / "a.pth", {"w": torch.ones(1)}, {})
    torch.save({"w": torch.ones(1).expand(count)}, tmp_path / "a.pth")
    assert "w holds fewer values" in refusal(tmp_path / "a.pth")


def test_many_names_of_one_weight_are_refused(tmp_path: Path) -> None:
    shared = torch.ones(100_000)
    save_final(tmp_path / "a.pth", {"w": shared}, {})
    torch.save({f"w{number}": shared for number in range(300)}, tmp_path / "a.pth")
    assert "120000000 bytes in a file of" in refusal(tmp_path / "a.pth")


def test_layers_that_share_a_weight_load(tmp_path: Path) -> None:
    save_final(tmp_path / "a.pth", dict.fromkeys("ab", torch.ones(100_000)), {})
    assert read_model_file(tmp_path / "a.pth").weights.keys() == {"a", "b"}


@pytest.mark.parametrize("name", [3, 2**70, (1, 2), None], ids=str)
def test_names_that_are_no_texts_are_refused(name: Any, tmp_path: Path) -> None:
    torch.save({name: torch.ones(2)}, tmp_path / "a.pth")
    assert "expected the weights of a network" in refusal(tmp_path / "a.pth")


def test_a_name_of_a_million_prefixes_is_read_at_once(tmp_path: Path) -> None:
    torch.save({"module." * 1_000_000 + "w": torch.ones(2)}, tmp_path / "a.pth")
    assert list(read_model_file(tmp_path / "a.pth").weights) == ["w"]


LONG = "x\n" * 500_000


@pytest.mark.parametrize(
    "content",
    [
        {LONG: 3}, {(LONG,): 3}, {LONG: torch.ones(2).to_sparse()}, {LONG: torch.ones(1).expand(9)},
        {f"module.{LONG}": torch.ones(2), LONG: torch.ones(2)},
    ],
    ids=["text", "tuple", "sparse", "expanded", "twice"],
)  # fmt: skip
def test_names_of_a_file_are_cut_short_in_an_error(content: dict[Any, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert len(refusal(tmp_path / "a.pth").replace(str(tmp_path), "")) < 400


def test_names_of_other_weights_are_cut_short_in_an_error(
    weights: Weights, tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    for found in (weights | {LONG: torch.ones(2)}, {LONG: torch.ones(2)}):
        error = refusal(tmp_path / "a.pth", lambda path, w=found: load_strictly(network(), w, path))
        assert len(error.replace(str(tmp_path), "")) < 900


@pytest.mark.parametrize(
    "record",
    [
        {"settings": LONG}, {"settings": {"noise_std": LONG}}, {"data": {LONG: 3}},
        {"data": {LONG: {"members": "AAAA"}}},
    ],
    ids=["settings", "noise", "data", "members"],
)  # fmt: skip
def test_values_of_a_record_are_cut_short_in_an_error(
    record: dict[str, Any], weights: Weights, tmp_path: Path
) -> None:
    save_final(tmp_path / "a.pth", weights, record)
    assert len(refusal(tmp_path / "a.pth").replace(str(tmp_path), "")) < 400


def test_a_plain_pickle_is_refused_without_a_warning(tmp_path: Path) -> None:
    as_legacy_pickle({"w": [1.0]}, tmp_path / "a.pth")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        refusal(tmp_path / "a.pth")
    assert not shown


@pytest.mark.parametrize("record", SPOILT, ids=str)
def test_a_sidecar_whose_parts_are_of_another_kind_is_refused(
    record: dict[str, Any], weights: Weights, tmp_path: Path
) -> None:
    save_final(tmp_path / "a.pth", weights, record)
    assert "is no record of a model" in refusal(tmp_path / "a.pth")


def test_a_final_model_cannot_be_resumed_and_the_message_says_what_can(
    weights: Weights, tmp_path: Path
) -> None:
    save_final(tmp_path / "a.pth", weights, {})
    message = refusal(tmp_path / "a.pth", read_checkpoint)
    assert "cannot be resumed" in message
    assert "Model_AE_" in message


# Failures while writing


def left(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def fail(*_: object, **__: object) -> None:
    raise DISK_FULL


@pytest.mark.parametrize("broken", ["os.fsync", "torch.save", "os.replace"])
def test_a_save_that_fails_leaves_the_old_file_and_no_other(
    broken: str, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_torch(tmp_path / "a.pth", weights)
    before = left(tmp_path)
    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="No space left"):
        save_torch(tmp_path / "a.pth", {"other": torch.zeros(9)})
    assert left(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_disk_that_is_full_is_an_oserror_and_leaves_the_old_file(
    weights: Weights, tmp_path: Path
) -> None:
    save_torch(tmp_path / "a.pth", weights)
    before = left(tmp_path)
    (tmp_path / "a.pth.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_torch(tmp_path / "a.pth", {"other": torch.zeros(100_000)})
    assert left(tmp_path) == before


@pytest.mark.parametrize("broken", ["pathlib.Path.write_text", "os.fsync", "torch.save"])
def test_a_final_model_that_cannot_be_written_leaves_the_old_one_and_its_sidecar(
    broken: str, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pth"
    save_final(path, weights, {"run": 1})
    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(OSError, match="No space left"):
            save_final(path, {n: v + 1 for n, v in weights.items()}, {"run": 2})
    found = read_model_file(path)
    assert are_equal(found.weights, weights)
    assert found.provenance["run"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.pth"]


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, newer = tmp_path / "a.pth", {n: v + 1 for n, v in weights.items()}
    save_final(path, newer, {"run": 2})
    beside = sidecar(path).read_bytes()
    save_final(path, weights, {"run": 1})
    sidecar(path).write_bytes(beside)  # The model has been read, and its successor's sidecar.
    monkeypatch.setattr(time, "sleep", lambda _: save_final(path, newer, {"run": 2}))
    assert read_model_file(path).provenance["run"] == 2


def test_a_sidecar_is_never_left_beside_weights_that_it_does_not_describe_unnoticed(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the renaming of the two files a crash can happen; reading must notice."""
    path = tmp_path / "a.pth"
    save_final(path, weights, {"run": 1})
    rename = os.replace

    def rename_weights_alone(source: Path, target: Path) -> None:
        rename(source, target) if target == path else fail()

    monkeypatch.setattr(os, "replace", rename_weights_alone)
    with pytest.raises(OSError, match="No space left"):
        save_final(path, {n: v + 1 for n, v in weights.items()}, {"run": 2})
    assert "describes other weights" in refusal(path)


@pytest.mark.skipif(os.name != "posix", reason="needs limits of size")
@pytest.mark.parametrize("size", [0, 100, 1000, 4000])
def test_a_file_that_cannot_grow_is_an_oserror_wherever_it_ends(
    size: int, weights: Weights, tmp_path: Path
) -> None:
    """Closing torch's archive fails, too, and would hide why."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_torch(tmp_path / "a.pth", weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
