"""JPEGs decoded on the device: by nvJPEG on a CUDA GPU, by libjpeg where the same code runs on a CPU. Both are torchvision's.

On a GPU all of it runs in its own thread and stream, beside those of the training.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pycls.data.batch import Request
from pycls.data.images.crop_tensor import crop_tensor, upright
from pycls.data.images.jpegs import Jpegs, pack
from pycls.data.sources.worker import Loaded
from pycls.errors import InputError, RunError

logger = logging.getLogger(__name__)

AREA = 1 << 26
"""Pixels decoded at a time, unless one image has more: 192 MiB of bytes, some 350 images of ImageNet."""

REMEDY = "DATA_LOADER.DECODER auto decodes them in the worker processes"


class DeviceDecoder:
    """Finishes what worker processes hand over.

    Args:
        device: that decodes.
        again: loads a request once more, wholly on the CPU; for JPEGs that the device refuses.

    Raises:
        InputError: the device does not decode JPEGs as it should.
    """

    def __init__(self, device: torch.device, again: Callable[[list[Request]], Loaded | RunError]) -> None:
        check(device)
        self._device, self._again = device, again
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._refused = 0

    def __call__(self, loaded: Loaded) -> Loaded:
        """The same with nothing left to decode: pixels uint8 ``[n, S, S, 3]`` on the device, finished and not only under way.

        Of the n images those may be fewer, or others, that neither the device nor the CPU can read. Raises
        :class:`RunError` as loading does.
        """
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of this thread: to leave the stream would wake the first GPU
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            made = self._finish(loaded)
            _settle(self._device)
        return made

    def _finish(self, loaded: Loaded) -> Loaded:
        jpegs, ids, unreadable = loaded.jpegs, list(loaded.ids), list(loaded.unreadable)
        pixels = torch.empty((len(ids), *loaded.pixels.shape[1:]), dtype=torch.uint8, device=self._device)
        others = sorted(set(range(len(ids))) - set(jpegs.places))
        if others:
            pixels[others] = loaded.pixels.to(self._device, non_blocking=True)
        lost = []
        for k in self._decode(jpegs, pixels):
            place, again = jpegs.places[k], self._again([jpegs.requests[k]])
            if isinstance(again, RunError):
                raise again
            unreadable += again.unreadable
            if again.ids:
                ids[place], pixels[place] = again.ids[0], again.pixels[0].to(self._device)
            else:
                lost.append(place)
        if lost:  # in evaluation
            kept = sorted(set(range(len(ids))) - set(lost))
            pixels, ids = pixels[kept], [ids[place] for place in kept]
        return Loaded(pixels, ids, unreadable, pack({}))

    def _decode(self, jpegs: Jpegs, pixels: Tensor) -> Iterator[int]:
        """Fills the JPEGs' places; yields the numbers among them of those that the device refuses."""
        files = jpegs.data.split(jpegs.lengths)
        for some in _portions(jpegs.areas):
            for k, image in zip(some, self._images([files[k] for k in some]), strict=True):
                if image is None:
                    yield k
                    continue
                square = crop_tensor(upright(image, jpegs.orientations[k]), jpegs.crops[k], pixels.shape[1])
                pixels[jpegs.places[k]].copy_(square.add_(0.5).permute(1, 2, 0))  # to bytes, whose fraction is cut off

    def _images(self, files: list[Tensor]) -> list[Tensor | None]:
        """Whole images, uint8 ``[3, H, W]``; None for those refused, which are found by halving: one fails the whole batch."""
        try:
            return list(decode_jpegs(files, self._device))
        except RuntimeError as error:
            if len(files) == 1 and "out of memory" in str(error):
                raise
            if len(files) == 1:
                self._refused += 1
                if self._refused == 1:
                    reason = " ".join(str(error).split())
                    logger.warning("a JPEG that the device refuses is decoded on the CPU, and so will be others: %s", reason)
                return [None]
        half = len(files) // 2
        return self._images(files[:half]) + self._images(files[half:])


def _portions(areas: list[int]) -> Iterator[list[int]]:
    """Numbers of images in a row whose areas, in pixels, are together no more than :data:`AREA`, or one."""
    portion: list[int] = []
    total = 0
    for k, area in enumerate(areas):
        if portion and total + area > AREA:
            yield portion
            portion, total = [], 0
        portion.append(k)
        total += area
    if portion:
        yield portion


def decode_jpegs(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """Files, uint8 ``[bytes]`` in CPU memory -> whole images, uint8 ``[3, H, W]`` on the device, not turned by EXIF.

    Returns when they are decoded. Raises ``RuntimeError`` if one of them cannot be.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # takes a second, and few runs need it

    # nvJPEG writes from a stream of torchvision's that waits for none of ours, perhaps into memory that has just become free
    # here while what is in our stream still reads it.
    _settle(device)
    return list(decode_jpeg(files, mode=ImageReadMode.RGB, device=device))


def _settle(device: torch.device) -> None:
    """Waits for the work in this thread's stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def check(device: torch.device) -> None:
    """Decodes three pictures, one grey, one progressive. Raises :class:`InputError` if that fails or gives other pixels than
    Pillow's."""
    down, across = np.mgrid[0:48, 0:64]
    colours = Image.fromarray(np.stack([2 * across, 2 * down, 255 - 2 * across], axis=2).astype(np.uint8))
    files, expected = [], []
    for picture, progressive in ((colours, False), (colours.convert("L"), False), (colours, True)):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=95, progressive=progressive)
        files.append(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
        with Image.open(file) as decoded:
            expected.append(torch.from_numpy(np.array(decoded.convert("RGB"))).permute(2, 0, 1).float())
    try:
        found = [image.cpu().float() for image in decode_jpegs(files, device)]
    except (RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"torchvision does not decode JPEGs on {device}: {reason}; {REMEDY}") from error
    worst = max(float((a - b).abs().mean()) if a.shape == b.shape else 255.0 for a, b in zip(found, expected, strict=True))
    if worst > 3:
        raise InputError(f"torchvision decodes JPEGs on {device} to other pixels ({worst:.0f} grey levels off); {REMEDY}")
