"""One evaluated image is one record; this module says what a record holds and how it is spelt.

Metrics are scalars of one image: MSE in squared [0, 1] intensities, PSNR in dB (``inf`` where the
MSE is 0), SSIM in [-1, 1].
"""

import re
from typing import NamedTuple

# Control characters break rows and are illegal in XML; lone surrogates (file names that are not
# UTF-8) and the two non-characters cannot be encoded or are illegal in XML too.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


class NoisyInput(NamedTuple):
    """How far from the clean image what a denoising network was fed is.

    Attributes:
        mse: As in `Record`.
        psnr: In dB.
        ssim: In [-1, 1].
        gain: PSNR of the reconstruction less that of the noisy image, in dB.
    """

    mse: float
    psnr: float
    ssim: float
    gain: float


class Record(NamedTuple):
    """Metrics of one image.

    Attributes:
        path: Path of the image as the user knows it.
        mse: Mean squared error over channels and pixels, at least 0.
        psnr: Peak signal-to-noise ratio in dB; ``inf`` for an identical reconstruction.
        ssim: Structural similarity in [-1, 1].
        width: Width in pixels.
        height: Height in pixels.
        noisy: Of the noisy image; None where no noise was added.
    """

    path: str
    mse: float
    psnr: float
    ssim: float
    width: int
    height: int
    noisy: NoisyInput | None = None

    def metrics(self) -> dict[str, float]:
        """Every metric by the heading of its column."""
        own = dict(zip(METRICS, self[1:4], strict=True))
        return own if self.noisy is None else own | dict(zip(NOISY, self.noisy, strict=True))


METRICS = ("MSE", "PSNR", "SSIM")
COLUMNS = ("Image Path", *METRICS, "Width", "Height")
"""Headings of the fields of a Record, in their order."""

NOISY = ("Noisy MSE", "Noisy PSNR", "Noisy SSIM", "PSNR Gain")
"""Headings that follow where noise was added."""

NUMBER_FORMATS = {
    "MSE": "0.000000",
    "PSNR": "0.00",
    "SSIM": "0.0000",
    "Width": "0",
    "Height": "0",
    "Noisy MSE": "0.000000",
    "Noisy PSNR": "0.00",
    "Noisy SSIM": "0.0000",
    "PSNR Gain": "0.00",
}
"""How a spreadsheet displays each column; the stored values keep their full precision."""


def visible(text: str) -> str:
    r"""Spell out the characters that neither a row of text nor a workbook can hold.

    Args:
        text: Any string, for instance a file name with a newline or a byte that is not UTF-8.

    Returns:
        The text on one line, with ``\n``, ``\x00`` or ``\udcff`` (the way Python writes the byte
        0xff of a file name) in place of such characters. Backslashes stay as they are.
    """
    return _UNSHOWABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
