import torch
from torch import Tensor, nn

from recon.models.output import Output, encode, joined, reconstruct, sigmoid_output


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
        assert all(torch.equal(a, b) for a, b in zip(result[:3], expected[:3], strict=True))
        assert result.logits is None


def test_an_output_names_its_parts_in_their_order() -> None:
    assert Output._fields[:3] == ("reconstruction", "latent", "penalty")


def test_gradients_pass_through() -> None:
    images = IMAGES.clone().requires_grad_()
    reconstruct(Decoded(), images).reconstruction.sum().backward()
    assert torch.equal(images.grad, torch.full_like(images, 0.5))


def test_the_reconstruction_of_logits_is_a_sigmoid_in_full_precision() -> None:
    logits = torch.full((1, 1, 2, 2), 8.0, dtype=torch.bfloat16)
    output = sigmoid_output(logits, torch.empty(1, 0))
    assert output.reconstruction.dtype == torch.float32
    assert torch.equal(output.reconstruction, torch.sigmoid(logits.float()))
    assert torch.equal(output.penalty, torch.zeros(1))


def test_the_pieces_of_a_batch_join_in_their_order() -> None:
    pieces = [Whole()(part)._replace(codes=torch.ones(1, 2, 2).long()) for part in IMAGES.chunk(2)]
    whole = joined(pieces)
    assert torch.equal(whole.reconstruction, IMAGES / 2)
    assert whole.logits is None
    assert whole.codes is not None
    assert whole.codes.shape == (2, 2, 2)


def test_a_detached_output_holds_on_to_no_graph() -> None:
    images = IMAGES.clone().requires_grad_()
    detached = Whole()(images).detached()
    assert not any(part is not None and part.requires_grad for part in detached)


def test_encoding_asks_the_network_or_else_its_encoder() -> None:
    class Own(Whole):
        def encode(self, images: Tensor) -> Tensor:
            return images + 1

    plain = nn.Module()
    plain.encoder = nn.Flatten()
    assert torch.equal(encode(Own(), IMAGES), IMAGES + 1)
    assert torch.equal(encode(plain, IMAGES), IMAGES.flatten(1))
