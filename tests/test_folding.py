import copy

import pytest
import torch
from torch import nn

from Auto_encoder import AutoEncoder
from recon.models.folding import fold_normalizations
from recon.models.output import reconstruct
from recon.models.registry import BUILDERS, Form, Options, build_model

OPTIONS = Options(residual_blocks=1, latent_dim=8, codebook_size=8, unet_width=4)


def experienced(architecture: str) -> nn.Module:
    """A network whose batch normalisations are far from the identity."""
    torch.manual_seed(0)
    model = build_model(architecture, Form(3, (32, 64)), OPTIONS, AutoEncoder)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.3, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


@pytest.mark.parametrize("architecture", ["auto_encoder", *BUILDERS])
@torch.no_grad()
def test_a_folded_network_reconstructs_as_the_plain_one_does(architecture):
    plain, images = experienced(architecture), torch.rand(2, 3, 32, 64)
    folded = fold_normalizations(copy.deepcopy(plain))
    expected, output = reconstruct(plain, images), reconstruct(folded, images)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.latent, expected.latent, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["auto_encoder", "dense", "vae", "residual", "unet"])
def test_no_normalisation_is_left_in_a_folded_network(architecture):
    folded = fold_normalizations(experienced(architecture))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@torch.no_grad()
def test_folding_leaves_the_images_and_layers_of_their_own_as_they_are():
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()).eval()
    plain[2].running_mean.fill_(0.3)
    images = torch.randn(2, 3, 8, 8)
    before, expected = images.clone(), plain(images)
    folded = fold_normalizations(copy.deepcopy(plain))
    torch.testing.assert_close(folded(images), expected)
    torch.testing.assert_close(images, before)
    assert isinstance(folded[2], nn.BatchNorm2d)


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match="model must be in evaluation"):
        fold_normalizations(AutoEncoder())
