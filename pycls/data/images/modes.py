"""What the numbers of an image file mean: of any mode that Pillow reads, grey or RGB of 8 bits."""

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
WHITE_IS_ZERO = 0


def eight_bit(image: Image.Image) -> Image.Image:
    """An opened file -> an image of mode L or RGB, not turned.

    Transparency is dropped. Deep grey is scaled so that its white becomes 255: 65535 of 16 bits, 4095 of a 12-bit TIFF, 1.0
    of floating-point numbers. The first image counts where there are several.

    Raises:
        ValueError: the pixels are floating-point numbers outside 0..1, or integers of which nothing says what is white (signed
            ones and those of 32 bits).
        Exception: what Pillow raises for a damaged file.
    """
    image.load()
    if image.mode == "F":
        return _grey(image, _fractions(image))
    if image.mode.startswith("I"):
        return _grey(image, _integers(image))
    if "transparency" in image.info:
        image = image.convert("RGBA")  # of a palette some colours are otherwise lost
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _grey(image: Image.Image, shares: np.ndarray) -> Image.Image:
    """Shares of white, 0..1 -> an image."""
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        shares = 1 - shares  # Pillow does so with 8 bits and fewer only
    return Image.fromarray((shares * 255 + 0.5).astype(np.uint8))


def _fractions(image: Image.Image) -> np.ndarray:
    shares = np.asarray(image)
    low, high = float(shares.min()), float(shares.max())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ValueError(f"floating-point pixels must lie in 0 (black) to 1 (white), these in {low:g} to {high:g}")
    return shares


def _integers(image: Image.Image) -> np.ndarray:
    """Of 16 bits, or fewer in a TIFF."""
    if image.mode == "I" and image.format != "PPM":  # of that format Pillow makes 65535 white
        raise ValueError("signed or 32-bit integers do not say what is white: store the pixels as 8 or 16 bits, unsigned")
    bits = int(image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0]) if isinstance(image, TiffImageFile) else 16
    return np.asarray(image).astype(np.float32) / np.float32(2**bits - 1)
