"""What the tests of the engine share: a small network, small images, small runs."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from datasets import ImageFolderDataset
from recon.data.loaders import Batches, make_loader
from recon.data.sampling import draw_epoch
from recon.objectives.losses import Objective
from recon.pipeline import run_training
from recon.settings import Settings
from recon.training.runtime import Runtime
from recon.training.trainer import Plan, Split, Trainer


class TwoLayers(nn.Module):
    """As small as a network with batch normalisation gets."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.decoder = nn.Sequential(nn.LeakyReLU(), nn.Conv2d(6, channels, 1), nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


class InMemory:
    """A dataset of tensors; None stands for an image that cannot be read."""

    def __init__(self, images: Sequence[Tensor | None]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index]
        if image is None:
            raise ValueError(f"image {index}: damaged")
        return image


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """Put back what a script changes for its whole process."""
    logger, environment = logging.getLogger("recon"), dict(os.environ)
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]
    torch.use_deterministic_algorithms(False)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def network() -> type[TwoLayers]:
    return TwoLayers


@pytest.fixture
def random_images() -> Callable[..., list[Tensor]]:
    """Smooth random images, (3, edge, edge) uint8."""

    def make(count: int, edge: int = 16, seed: int = 0) -> list[Tensor]:
        coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        fine = [np.asarray(Image.fromarray(c).resize((edge, edge))) for c in coarse]
        return [torch.from_numpy(np.array(f.transpose(2, 0, 1))) for f in fine]

    return make


@pytest.fixture
def write_images(random_images: Callable[..., list[Tensor]]) -> Callable[..., Path]:
    """Write images as `folder/<names>`, or `folder/a/0.png` and on."""

    def write(
        folder: Path, count: int = 0, *, names: Sequence[str] = (), edge: int = 16, seed: int = 0
    ) -> Path:
        names = names or [f"{'ab'[i % 2]}/{i}.png" for i in range(count)]
        for name, image in zip(names, random_images(len(names), edge, seed), strict=True):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy().transpose(1, 2, 0)).save(path)
        return folder

    return write


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a run on the CPU that lasts a moment and writes below `tmp_path`."""

    def make(**changes: Any) -> Settings:
        small: dict[str, Any] = {
            "GPUs": "",
            "num_workers": 0,
            "folder_path_train": str(tmp_path / "train"),
            "folder_path_test": str(tmp_path / "test"),
            "tile_size": 16,
            "num_epochs": 2,
            "batch_size_train": 4,
            "model_saved_location_mse": str(tmp_path / "out"),
            "training_loss_file_mse": str(tmp_path / "out/loss.csv"),
            "model_path_mse": str(tmp_path / "out/Final_Model_AE_MSE.pth"),
            "recon_output_mse": str(tmp_path / "pictures"),
            "reconstruction_metrics_mse": str(tmp_path / "metrics.xlsx"),
            "save_interval": 1,
            "validation_fraction": 0.0,
            "precision": "float32",
        }
        return Settings(**small | changes)

    return make


@pytest.fixture
def train(
    make_settings: Callable[..., Settings], network: type[TwoLayers]
) -> Callable[..., dict[str, Tensor]]:
    """Run a training with the MSE objective; returns the weights of the final model."""

    def run(*, model: Callable[[int], nn.Module] = network, **changes: Any) -> dict[str, Tensor]:
        final = run_training(make_settings(**changes), "mse", model, ImageFolderDataset)
        return torch.load(final, weights_only=True)

    return run


@pytest.fixture
def make_trainer(network: type[TwoLayers]) -> Callable[..., Trainer]:
    """A trainer on images in memory, without augmentation or normalisation."""

    def split(images: Sequence[Tensor | None], batch_size: int, *, shuffled: bool) -> Split:
        groups = [np.arange(len(images))]
        batches = Batches(
            len(images),
            batch_size,
            (lambda e: draw_epoch(groups, len(images), seed=0, epoch=e)) if shuffled else None,
        )
        loader = make_loader(InMemory(images), batches, num_workers=0, pin_memory=False)
        return Split(loader, batches, lambda index: f"image {index}")

    def make(
        images: Sequence[Tensor | None],
        *,
        validation: Sequence[Tensor | None] | None = None,
        model: nn.Module | None = None,
        batch_size: int = 4,
        precision: str = "float32",
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        **plan: Any,
    ) -> Trainer:
        torch.manual_seed(0)
        runtime = Runtime(torch.device("cpu"), 1, precision)
        model = runtime.place(network() if model is None else model)
        usual = {"epochs": 2, "peak_learning_rate": 1e-2, "schedule": "constant"}
        usual |= {"warmup_fraction": 0.0, "gradient_clip": 1.0, "seed": 0}
        return Trainer(
            model=model,
            objective=Objective({"mse": 1.0}),
            optimizer=optimizer(model.parameters(), lr=1e-2, fused=True),
            runtime=runtime,
            plan=Plan(**{**usual, "stop_at_unreadable": False, **plan}),
            train=split(images, batch_size, shuffled=True),
            validation=validation and split(validation, batch_size, shuffled=False),
            prepare=lambda images: images,
            augment=lambda images, _seed, _places: images,
        )

    return make


@pytest.fixture
def record_opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Begin to record the names of files that are opened through a path, in their order."""

    def begin() -> list[str]:
        opened: list[str] = []
        plain_open = Path.open

        def recording(self: Path, *args: Any) -> Any:
            opened.append(self.name)
            return plain_open(self, *args)

        monkeypatch.setattr(Path, "open", recording)
        return opened

    return begin
