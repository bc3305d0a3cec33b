"""A codebook: the few vectors that may stand for any place of a latent picture.

Latents are (N, D, h, w) float32, codes (N, h, w) int64 in 0..K-1, for K entries of D numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Codebook", "perplexity", "straight_through"]

LEARNING = ("ema", "gradient")
SMOOTHING = 1e-5  # epsilon of van den Oord, Vinyals and Kavukcuoglu (2017), appendix A.1

# An entry that fewer vectors per step choose is dead: one that nothing chooses falls from 1 to this
# in 11 steps at a decay of 0.99. In the first steps the encoder's outputs move away from the
# entries that were taken from them, and a dozen of 512 serve until the others are revived. With
# 0.5 and 0.1, after 69 and 229 steps, the squared error on tissue came out 1.4 and 1.8 times as
# large after 120 steps of training, 1.1 and 1.6 times after 240.
LEAST_USAGE = 0.9
LEAST_SHARE = 0.4  # of the mean over all entries; bounds LEAST_USAGE where batches are small

SEARCHED = 2**16  # vectors compared with the entries at a time, to bound the memory


class Codebook(nn.Module):
    """Entries, how often each is used, and how they learn.

    A fresh codebook counts as dead: the first call of `adapt` takes every entry from the latents
    of that batch, as later calls do with entries that have died.

    Args:
        size: K, entries.
        dim: D, numbers in an entry.
        learning: "ema" for moving averages of the vectors that chose an entry, "gradient" for an
            optimiser.
        decay: Of the moving averages, per step, in (0, 1).

    Raises:
        ValueError: If there is no such learning.
    """

    embedding: Tensor  # (K, D)
    usage: Tensor  # (K,), N: moving average of the vectors per step that choose an entry
    sums: Tensor  # (K, D), m: moving average of their sum; with "ema" alone

    def __init__(self, size: int, dim: int, *, learning: str, decay: float) -> None:
        super().__init__()
        if learning not in LEARNING:
            raise ValueError(f"codebook must be one of {', '.join(LEARNING)}, got {learning!r}")
        self.learning, self.decay = learning, decay
        entries = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        self.register_buffer("usage", torch.zeros(size))
        if learning == "gradient":
            self.embedding = nn.Parameter(entries)
        else:
            self.register_buffer("embedding", entries)
            self.register_buffer("sums", torch.zeros(size, dim))

    @torch.no_grad()
    def forward(self, latent: Tensor) -> Tensor:
        """Number of the entry that is nearest to each vector, by squared distance.

        Args:
            latent: (N, D, h, w) float32.

        Returns:
            (N, h, w) int64.
        """
        # In half precision, and in TF32, near entries would be mistaken for each other.
        rounded = torch.backends.cuda.matmul.allow_tf32
        dtype = torch.float64 if rounded else torch.float32
        with torch.autocast(latent.device.type, enabled=False):
            # |z - e|^2 without |z|^2, which is the same for all entries.
            entries = self.embedding.to(dtype)
            squares = entries.square().sum(1)
            codes = [
                torch.addmm(squares, part.to(dtype), entries.t(), alpha=-2).argmin(1)
                for part in torch.split(_vectors(latent), SEARCHED)
            ]
        return torch.cat(codes).view(len(latent), *latent.shape[2:])  # (N, h, w)

    def look_up(self, codes: Tensor) -> Tensor:
        """The entries of these numbers.

        Args:
            codes: (N, h, w) int64.

        Returns:
            (N, D, h, w) float32.
        """
        return functional.embedding(codes, self.embedding).movedim(-1, 1)

    @torch.no_grad()
    def adapt(
        self, latent: Tensor, codes: Tensor, total: Callable[[Tensor], Tensor], *, first: bool
    ) -> None:
        """Learn in place from a batch; does nothing in `eval()`.

        Moving averages N <- dN + (1-d)n and m <- dm + (1-d)sum(z), and from them the entries
        e = m / N', where N' = (N + eps) / (sum(N) + K eps) sum(N) is not stored back into N.
        Entries that were dead before this batch take the place of random vectors of it instead,
        with N = 1 and m = e. With "gradient", N and the dead alone are seen to.

        Args:
            latent: (N, D, h, w) float32, of this rank's part of the batch.
            codes: (N, h, w) int64, what `forward` gave for it.
            total: The sum of a tensor over all ranks.
            first: Whether this rank chooses the vectors for dead entries.

        Source:
            arXiv:1711.00937, appendix A.1. Started from N = 0, as many programs are, m / N' throws
            every entry that no vector chose out to norms of 1e5, from where it never returns.
        """
        if not self.training:
            return
        vectors = _vectors(latent)
        chosen = self._draw(vectors)
        news = torch.cat([self._pool(vectors, codes), chosen if first else chosen.zero_()], dim=1)
        dim = vectors.shape[1]
        counts, sums, chosen = torch.split(total(news), [1, dim, dim], dim=1)
        dead = self.usage < (LEAST_SHARE * counts.mean()).clamp(max=LEAST_USAGE)
        self.usage.lerp_(counts[:, 0], 1 - self.decay).masked_fill_(dead, 1.0)
        if self.learning == "gradient":
            self.embedding.copy_(torch.where(dead[:, None], chosen, self.embedding))
            return
        self.sums.lerp_(sums, 1 - self.decay)
        self.sums.copy_(torch.where(dead[:, None], chosen, self.sums))
        every = self.usage.sum()
        smoothed = (self.usage + SMOOTHING) / (every + len(self.usage) * SMOOTHING) * every
        self.embedding.copy_(self.sums / smoothed[:, None])

    def _pool(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Number and sum of the vectors that chose each entry, (K, 1 + D)."""
        counted = torch.cat([vectors.new_ones(len(vectors), 1), vectors], dim=1)
        pooled = vectors.new_zeros(len(self.usage), counted.shape[1])
        return pooled.index_add_(0, codes.flatten(), counted)

    def _draw(self, vectors: Tensor) -> Tensor:
        """A random vector for each entry, (K, D), all from different stretches of the batch.

        Draws K numbers of torch's generator whatever the batch, so that ranks stay in step.
        """
        size = len(self.usage)
        places = (torch.arange(size) + torch.rand(size, dtype=torch.float64)) / size
        rows = (places * len(vectors)).long().clamp_(max=len(vectors) - 1)
        return vectors[rows.to(vectors.device)]


def straight_through(latent: Tensor, entries: Tensor) -> Tensor:
    """The entries going forward, the identity on the latent going back.

    Equals z + sg(q - z), written so that rounding leaves q as it is.

    Args:
        latent: z, of any shape.
        entries: q, of the same shape.
    """
    return entries.detach() + (latent - latent.detach())


def perplexity(counts: Tensor) -> float:
    """How many codes are in use, as exp(-sum p log(p + 1e-10)): 1 for one, K for K alike.

    Args:
        counts: (K,) uses of each code, pooled over an epoch: batches one by one would show fewer.

    Returns:
        From 1 to K; NaN where nothing is counted.
    """
    share = counts.double() / counts.sum()
    return float(torch.exp(-(share * torch.log(share + 1e-10)).sum()))


def _vectors(latent: Tensor) -> Tensor:
    """The vectors at all places of latent pictures, (N h w, D)."""
    return latent.movedim(1, -1).flatten(0, -2)
