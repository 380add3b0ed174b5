"""Which JPEGs the compiled decoder and the device decode, and that they decode these as Pillow does, bit for bit."""

import io
from itertools import product

import numpy as np
import pytest
from bad_files import photograph
from image_writers import jpeg_header, jpeg_of_factors
from PIL import Image

from pycls.data.images import jpeg_decoder
from pycls.data.images.crop_spec import CropSpec, crop_array
from pycls.data.images.decoding import decode, decode_crop
from pycls.data.images.jpegs import FACTORS, for_device

LARGEST = 10
"""Blocks in a unit of an interleaved JPEG."""
PAIRS = list(product(range(1, 5), repeat=2))
ALL = [[pair] for pair in PAIRS] + [list(f) for f in product(PAIRS, repeat=3) if sum(h * v for h, v in f) <= LARGEST]
CMYK = [[(1, 1)] * 4, [(2, 2), (1, 1), (1, 1), (2, 2)], [(2, 1), (1, 1), (1, 1), (2, 1)]]


@pytest.fixture
def decoder() -> jpeg_decoder.JpegDecoder:
    found = jpeg_decoder.jpeg_decoder()
    if found is None:
        pytest.skip("no compiled decoder: there is no compiler or no libjpeg here")
    return found


def planes(width: int, height: int, count: int) -> np.ndarray:
    """uint8 ``[count, height, width]``: smooth colours with grain."""
    grain = np.random.default_rng(width).integers(-25, 25, (height, width, 3))
    pixels = (np.asarray(photograph(width, height)) + grain).clip(0, 255).astype(np.uint8)
    return pixels.transpose(2, 0, 1)[[0, 1, 2, 0][:count]]


def square(left: int, top: int, side: int) -> CropSpec:
    """A part of the image, pixel for pixel."""
    box = (left, top, left + side, top + side)
    return CropSpec(box, box, flip=False)


def squares(width: int, height: int) -> list[CropSpec]:
    """The largest at both ends, and parts anywhere."""
    random, side = np.random.default_rng(height), min(width, height)
    cuts = [square(0, 0, side), square(width - side, height - side, side)]
    for _ in range(6):
        part = int(random.integers(1, side + 1))
        cuts.append(square(int(random.integers(0, width - part + 1)), int(random.integers(0, height - part + 1)), part))
    return cuts


def test_it_takes_a_closed_list_of_factors(decoder: jpeg_decoder.JpegDecoder) -> None:
    """Of all that there are."""
    for factors in [*ALL, *CMYK]:
        data = jpeg_of_factors(planes(9, 7, len(factors)), factors)
        assert (decoder.shape(data) is not None) == (factors in FACTORS), factors
        assert (for_device(data, lambda h, w: square(0, 0, 1), 1) is not None) == (factors in FACTORS), factors


@pytest.mark.parametrize("factors", [*FACTORS, [(4, 2), (1, 1), (1, 1)], [(2, 1), (1, 2), (1, 1)], [(1, 2), (1, 1), (1, 1)],
                                     [(4, 1), (1, 1), (2, 1)], *CMYK], ids=str)  # fmt: skip
@pytest.mark.parametrize("width, height", [(61, 45), (64, 48), (33, 70), (17, 19), (150, 41)])
def test_pixels_of_any_factors_are_pillows(factors, width: int, height: int, decoder: jpeg_decoder.JpegDecoder) -> None:
    data = jpeg_of_factors(planes(width, height, len(factors)), factors)
    whole = decode(data)
    assert whole.shape == (height, width, 3)
    for crop in squares(width, height):
        side = crop.clip[2] - crop.clip[0]
        made = decode_crop(data, lambda h, w, crop=crop: crop, side, decoder)
        assert np.array_equal(made, crop_array(whole, crop, side)), crop


@pytest.mark.parametrize("frame", [0xC1, 0xC3, 0xC9, 0xCA])
def test_unusual_codings_are_left_to_pillow(frame: int, decoder: jpeg_decoder.JpegDecoder) -> None:
    """Extended, lossless and arithmetic coding."""
    data = jpeg_of_factors(planes(24, 16, 3), [(1, 1)] * 3)
    assert decoder.shape(data) == (16, 24)
    header = jpeg_header(24, 16, [(1, 1)] * 3)
    assert decoder.shape(data.replace(header, jpeg_header(24, 16, [(1, 1)] * 3, frame))) is None
    assert decoder.shape(data.replace(header, jpeg_header(24, 16, [(1, 1)] * 3, 0xC1, precision=12))) is None


def scans(data: bytes) -> list[int]:
    """Where each begins."""
    return [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]


@pytest.mark.parametrize("kept", range(2, 10))
def test_progressive_images_without_all_scans_are_pillows(kept: int, decoder: jpeg_decoder.JpegDecoder) -> None:
    """What is missing is smoothed over, by each version of libjpeg in its own way."""
    file = io.BytesIO()
    Image.fromarray(planes(70, 50, 3).transpose(1, 2, 0)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    data = whole[: scans(whole)[kept]] + b"\xff\xd9"
    assert decoder.decode(data, square(5, 5, 30), 30) is None and decoder.decode(whole, square(5, 5, 30), 30) is not None
    made = decode_crop(data, lambda h, w: square(5, 5, 30), 30, decoder)
    assert np.array_equal(made, decode(data)[5:35, 5:35])


def test_what_libjpeg_warns_of_is_left_to_pillow(decoder: jpeg_decoder.JpegDecoder) -> None:
    data = jpeg_of_factors(planes(64, 48, 3), [(2, 2), (1, 1), (1, 1)])
    start = scans(data)[0] + 14
    damaged = data[: start + 40] + b"\xff\xd9"  # an end where there should be more
    assert decoder.shape(damaged) == (48, 64) and decoder.decode(damaged, square(0, 0, 48), 48) is None
    assert np.array_equal(decode_crop(damaged, lambda h, w: square(0, 0, 48), 48, decoder), decode(damaged)[:48, :48])


def test_what_pillow_calls_too_large_is_left_to_it(decoder: jpeg_decoder.JpegDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg_of_factors(planes(64, 48, 1), [(1, 1)])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 24)
    assert decoder.shape(data) == (48, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 24 - 1)
    assert decoder.shape(data) is None
    with pytest.raises(Image.DecompressionBombError):
        decode_crop(data, lambda h, w: square(0, 0, 8), 8, decoder)
