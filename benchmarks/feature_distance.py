r"""How far reconstructions are from their images in the features of a network.

    python -m benchmarks.feature_distance --folder_path_test TILES --tile_size 181 \
        --feature_network MODEL --feature_layer encoder.8 -- ONE_MODEL ANOTHER_MODEL

Prints, for each model, the mean squared distance over the images, beside the mean MSE. All settings
are those of `Config.py`, which flags before the `--` change.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import Config
from Auto_encoder import AutoEncoder
from datasets import ImageFolderDataset
from recon.data.loaders import to_unit_range
from recon.objectives.losses import TERMS, Prediction
from recon.pipeline import open_images, open_model
from recon.pipeline.features import further_terms
from recon.pipeline.models import edges
from recon.settings import Settings, load


def distances(path: Path, settings: Settings) -> tuple[float, float]:
    """Mean feature distance and mean MSE of a model over the test folder."""
    model = open_model(path, settings, AutoEncoder)
    preparation = model.preparation._replace(tile_size=edges(settings.tile_size))
    model = model._replace(preparation=preparation)
    images = open_images(settings.folder_path_test, model, ImageFolderDataset)
    wanted = settings.model_copy(update={"loss_weights_mse": {"feature": 1.0}})
    feature = further_terms(wanted, "mse", AutoEncoder, model.runtime)["feature"]
    sums = torch.zeros(2, dtype=torch.float64)
    for index in range(len(images)):
        target = to_unit_range(images[index][None].to(model.runtime.device))
        prediction = Prediction(model.reconstruct(target).clamp(0, 1))
        with torch.no_grad():
            values = [term(prediction, target).item() for term in (feature, TERMS["mse"])]
        sums += torch.tensor(values)
    mean = (sums / len(images)).tolist()
    return mean[0], mean[1]


def main(argv: Sequence[str]) -> int:
    """Measure, and print a line for each model."""
    logging.getLogger("recon").setLevel(logging.WARNING)
    split = argv.index("--")
    settings, _ = load(Config, list(argv[:split]))
    for path in argv[split + 1 :]:
        feature, mse = distances(Path(path), settings)
        sys.stdout.write(f"{path}: feature distance {feature:.6g}, MSE {mse:.6f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
