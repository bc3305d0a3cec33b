"""What ranks do together to judge one network by the images of all of them."""

import math

import torch
from torch import Tensor, nn

from recon.errors import UserError
from recon.ranks import Ranks
from recon.training.averaging import WeightAverage
from recon.training.runtime import unwrap

__all__ = ["judged", "mean_scores"]


def judged(model: nn.Module, average: WeightAverage | None, ranks: Ranks) -> nn.Module:
    """The network that is validated and saved, the same on every rank.

    Args:
        model: As it is trained, perhaps in a wrapper.
        average: Of its weights.
        ranks: That share the images.
    """
    if ranks.world == 1:
        return model if average is None else average.module
    # Not through its wrapper, where a rank without images would keep the others waiting; and with
    # the statistics of the first rank, whose network is the one that is saved.
    own = unwrap(model) if average is None else average.module
    for buffer in own.buffers():
        mine = buffer if ranks.first else torch.zeros_like(buffer)
        buffer.copy_(ranks.total(mine))
    return own


def mean_scores(columns: list[Tensor], ranks: Ranks) -> tuple[float, float, float]:
    """Mean loss, PSNR in dB and SSIM over the images of all ranks.

    Args:
        columns: (3, N) of each batch of this rank.
        ranks: That share the images.

    Raises:
        UserError: If there are none.
    """
    values = torch.cat(
        [part for parts in ranks.gather([c.cpu() for c in columns]) for part in parts]
        or [torch.empty(3, 0)],
        dim=1,
    )
    if values.shape[1] == 0:
        raise UserError("none of the validation images can be read")
    values[1, torch.isinf(values[1])] = math.nan  # An identical image has no PSNR.
    loss, _, similarity = values.mean(dim=1).tolist()
    return loss, values[1].nanmean().item(), similarity
