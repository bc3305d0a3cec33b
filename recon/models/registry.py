"""Networks by name."""

from collections.abc import Callable, Mapping

from torch import nn

from recon.errors import UserError

__all__ = ["Builder", "build_model"]

Builder = Callable[[int], nn.Module]  # from the number of channels


def build_model(architecture: str, channels: int, builders: Mapping[str, Builder]) -> nn.Module:
    """Build a network.

    Args:
        architecture: Its name.
        channels: Of the images.
        builders: The networks there are.

    Raises:
        UserError: If there is none of that name.
    """
    if architecture not in builders:
        known = ", ".join(sorted(builders))
        raise UserError(f"architecture must be one of {known}, got {architecture!r}")
    return builders[architecture](channels)
