"""JPEGs that worker processes hand over as they are, for the device to decode: which they are, and how they travel."""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from pycls.data.batch import Request
from pycls.data.images.crop_spec import CropSpec
from pycls.data.images.crop_tensor import TRANSPOSED, fits
from pycls.data.images.decoding import orientation_of

START, END = b"\xff\xd8", b"\xff\xd9"
RGB_IDS = [ord(letter) for letter in "RGB"]
FACTORS = ([(1, 1)], *([luma, (1, 1), (1, 1)] for luma in ((1, 1), (2, 1), (2, 2))))
"""Sampling factors, horizontal and vertical, of each layer: grey, 4:4:4, 4:2:2, 4:2:0."""


class Jpeg(NamedTuple):
    """A file, and what becomes of it.

    Attributes:
        data: the file.
        area: pixels of the whole image.
        orientation: EXIF's, 1..8.
        crop: of the upright image.
    """

    data: bytes
    area: int
    orientation: int
    crop: CropSpec


class Jpegs(NamedTuple):
    """Those of a batch; all lists have a value for each.

    Attributes:
        data: their files one after the other, uint8 ``[bytes]``: one piece of memory to share and to pin.
        lengths: of the files, in bytes.
        areas: pixels of the whole images.
        orientations: EXIF's, 1..8.
        crops: of the upright images.
        places: in the batch.
        requests: what was asked for.
    """

    data: Tensor
    lengths: list[int]
    areas: list[int]
    orientations: list[int]
    crops: list[CropSpec]
    places: list[int]
    requests: list[Request]


def pack(jpegs: Mapping[int, tuple[Jpeg, Request]]) -> Jpegs:
    """Place in the batch -> a JPEG and what was asked for; there may be none."""
    files = [jpeg for jpeg, _ in jpegs.values()]
    data = torch.from_numpy(np.frombuffer(bytearray().join(jpeg.data for jpeg in files), np.uint8))
    return Jpegs(
        data, [len(jpeg.data) for jpeg in files], [jpeg.area for jpeg in files], [jpeg.orientation for jpeg in files],
        [jpeg.crop for jpeg in files], list(jpegs), [request for _, request in jpegs.values()],
    )  # fmt: skip


def for_device(data: bytes, place: Callable[[int, int], CropSpec], size: int) -> Jpeg | None:
    """The file as the device can take it; None for what a worker process had better decode.

    That is whatever is no plain JPEG: of 8 bits, grey or YCbCr in 4:4:4, 4:2:2 or 4:2:0, one image that begins and ends as it
    should. And a crop that is
    not made well on a device (:func:`~pycls.data.images.crop_tensor.fits`).

    Args:
        data: the file.
        place: height and width of the upright image -> the crop.
        size: side of the crop's square, in pixels.
    """
    if not (data.startswith(START) and data.endswith(END)):
        return None  # cut off, or something follows
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as file:  # reads the header only
                if not _is_plain(file):
                    return None
                (width, height), orientation = file.size, orientation_of(file)
    except Exception:  # Pillow raises nearly anything for a damaged file; the decoder reports what is wrong
        return None
    crop = place(width, height) if orientation in TRANSPOSED else place(height, width)
    return Jpeg(data, width * height, orientation, crop) if fits(crop, size) else None


def _is_plain(file: Image.Image) -> bool:
    """Of the files that Pillow reads as JPEG, not several images in one, not CMYK, not RGB stored as such, and none of unusual
    sampling factors, for which decoders have different pixels."""
    if not isinstance(file, JpegImageFile) or file.format != "JPEG":
        return False
    if [layer[1:3] for layer in file.layer] not in FACTORS:
        return False
    if file.mode == "RGB":
        return file.info.get("adobe_transform") != 0 and [layer[0] for layer in file.layer] != RGB_IDS
    return file.mode == "L"
