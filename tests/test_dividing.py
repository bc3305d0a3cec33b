import pytest
import torch
from torch import Tensor, nn

from recon.training.dividing import divided, learns_from


@pytest.mark.parametrize(
    ("parts", "accumulation", "from_one", "pieces"),
    [
        ([(4, 0)], 1, False, 1),
        ([(4, 0)], 8, False, 4),  # The network itself refuses, with advice.
        ([(1, 0)], 1, False, 1),
        ([(1, 3)], 1, False, 0),
        ([(1, 3)], 1, True, 1),
        ([(3, 1)], 2, False, 1),
        ([(3, 1)], 2, True, 2),
        ([(0, 4)], 1, True, 0),
        ([(4, 0), (1, 3)], 1, False, 0),
        ([(4, 0), (2, 2)], 2, False, 1),
        ([(4, 0), (0, 4)], 1, False, 0),
    ],
)
def test_a_batch_is_divided_so_that_every_piece_can_be_learnt_from(
    parts: list[tuple[int, int]], accumulation: int, from_one: bool, pieces: int
) -> None:
    total = sum(count for count, _ in parts)
    assert divided(parts, accumulation, lambda: from_one) == (total, pieces)


def test_the_network_is_asked_only_where_images_are_missing() -> None:
    def ask() -> bool:
        raise AssertionError

    assert divided([(1, 0)], 1, ask) == (1, 1)
    assert divided([(0, 2)], 1, ask) == (0, 0)


class Normalising(nn.Module):
    """Halves an image, normalises, and doubles it again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> Tensor:
        small: Tensor = self.norm(nn.functional.avg_pool2d(images, 2))
        return nn.functional.interpolate(small, scale_factor=2.0)


def test_a_batch_normalisation_learns_from_one_image_if_it_has_two_values() -> None:
    model = Normalising().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not learns_from(model, torch.rand(1, 1, 2, 2))
    assert learns_from(model, torch.rand(2, 1, 2, 2))
    assert learns_from(model, torch.rand(1, 1, 4, 2))
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
