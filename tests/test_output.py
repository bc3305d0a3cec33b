import torch
from torch import Tensor, nn

from recon.models.output import Output, reconstruct


class Decoded(nn.Module):
    """Returns the decoded tensor alone."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 2


class Whole(nn.Module):
    """Returns an `Output`."""

    def forward(self, images: Tensor) -> Output:
        return Output(images / 2, images.flatten(1)[:, :4], images.flatten(1).sum(1))


class Bare(Whole):
    """Returns the three tensors of an `Output` without its names."""

    def forward(self, images: Tensor) -> Output:
        return tuple(super().forward(images))  # type: ignore[return-value]


IMAGES = torch.rand(2, 3, 8, 6)


def test_a_decoded_tensor_alone_is_the_reconstruction() -> None:
    assert torch.equal(reconstruct(Decoded(), IMAGES).reconstruction, IMAGES / 2)


def test_a_decoded_tensor_alone_has_an_empty_latent_and_no_penalty() -> None:
    result = reconstruct(Decoded(), IMAGES.double())
    assert result.latent.shape == (2, 0)
    assert torch.equal(result.penalty, torch.zeros(2, dtype=torch.float64))


def test_an_output_is_handed_on_as_it_is() -> None:
    expected = Whole()(IMAGES)
    for model in (Whole(), Bare()):
        result = reconstruct(model, IMAGES)
        assert isinstance(result, Output)
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_an_output_names_its_parts_in_their_order() -> None:
    assert Output._fields == ("reconstruction", "latent", "penalty")


def test_gradients_pass_through() -> None:
    images = IMAGES.clone().requires_grad_()
    reconstruct(Decoded(), images).reconstruction.sum().backward()
    assert torch.equal(images.grad, torch.full_like(images, 0.5))
