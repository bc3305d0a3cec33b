"""The loop that most projects write: what the engine is measured against.

PIL transforms on each image in worker processes, float32 with the channels outermost, Adam, the
loss read after every step; an image at a time, scikit-image's metrics and a matplotlib figure for
each tile in evaluation.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import pyplot
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped, unused-ignore]

TILE = 256  # pixels


def transform() -> transforms.Compose:
    """The augmentations of the reference system, on one PIL image."""
    return transforms.Compose(
        [
            transforms.Resize((TILE, TILE)),
            transforms.RandomRotation(45),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5),
            transforms.ColorJitter(0.2, 0.2, 0.2, 0.1),
            transforms.GaussianBlur(5, sigma=(0.1, 2.0)),
            transforms.ToTensor(),
        ]
    )


class PilDataset(Dataset[Tensor]):
    """Reads and transforms one image after the other; (3, 256, 256) float32 in [0, 1]."""

    def __init__(self, paths: Sequence[Path], *, augmented: bool) -> None:
        self.paths = paths
        self.transform = transform() if augmented else transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
        return image


def make_loader(paths: Sequence[Path], batch: int, workers: int) -> DataLoader[Tensor]:
    """Augmented batches, shuffled."""
    dataset = PilDataset(paths, augmented=True)
    return DataLoader(dataset, batch, shuffle=True, num_workers=workers, drop_last=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    """One step of training."""
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(images), images)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(model: nn.Module, paths: Sequence[Path], out: Path, device: torch.device) -> None:
    """Reconstruct, measure and draw each image."""
    model.eval()
    for index, image in enumerate(PilDataset(paths, augmented=False)):
        images = image[None].to(device)
        original = images[0].permute(1, 2, 0).cpu().numpy()
        result = model(images)[0].permute(1, 2, 0).cpu().numpy()
        psnr = peak_signal_noise_ratio(original, result, data_range=1.0)
        ssim = structural_similarity(original, result, data_range=1.0, channel_axis=-1)
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 5))
        for axis, title, picture in zip(
            axes, ("Original", "Reconstruction"), (original, result), strict=True
        ):
            axis.imshow(picture)
            axis.set_title(title)
            axis.axis("off")
        figure.suptitle(f"PSNR {psnr:.2f}, SSIM {ssim:.4f}")
        figure.savefig(out / f"{index}.png", dpi=150, bbox_inches="tight")
        pyplot.close(figure)
