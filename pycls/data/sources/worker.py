"""What runs in a worker process: a list of requests -> decoded and cropped images, and those that cannot be read."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from pycls.data import rng
from pycls.data.augment.policies import Samples
from pycls.data.batch import Request, Settings
from pycls.data.dataset import EncodedDataset, FileDataset
from pycls.data.images.crop_spec import CropSpec, crop_array
from pycls.data.images.crops import EVAL_RATIO, eval_crop, train_crop
from pycls.data.images.decoding import decode_crop
from pycls.data.images.jpeg_decoder import jpeg_decoder
from pycls.data.images.jpegs import Jpeg, Jpegs, for_device, pack
from pycls.errors import RunError

OF_CLASS, OF_ANY = 100, 20
"""How many other images are tried in the place of an unreadable one: first of its class, then of any."""
_SUBSTITUTE_STREAMS = 200  # the first of the streams of this file: one for the class, then one for each try


class Loaded(NamedTuple):
    """What a worker process hands over.

    Attributes:
        pixels: uint8 ``[m, S, S, C]``, of those of the n images that it has decoded, in the batch's order.
        ids: of all images, ``n``.
        unreadable: (name, reason) of those that could not be read.
        jpegs: the other n - m images, for the device to decode.
    """

    pixels: Tensor
    ids: list[int]
    unreadable: list[tuple[str, str]]
    jpegs: Jpegs


class BatchWorker(TorchDataset[Loaded]):
    """What runs in a worker process: a list of requests -> their pixels, or the error that ends the run.

    The error is returned, not raised: PyTorch would wrap it in the traceback of the process.

    Args:
        dataset: the data set.
        settings: how batches are made.
        hands_over: whether plain JPEGs are handed over as they are.
    """

    def __init__(self, dataset: FileDataset, settings: Settings, hands_over: bool = False) -> None:
        self._dataset = dataset
        self._settings = settings
        self._train, self._seed = settings.train, settings.seed
        self._resize = settings.resize or round(settings.im_size * EVAL_RATIO)
        self._forgiving = settings.unreadable is not None
        self._hands_over = hands_over

    def __getitem__(self, request: Request) -> Loaded:
        raise NotImplementedError("batches are fetched whole")

    def __getitems__(self, requests: list[Request]) -> Loaded | RunError:
        size = self._settings.size_at(requests[0][0])
        pixels = np.empty((len(requests), size, size, self._dataset.channels), np.uint8)
        ids: list[int] = []
        jpegs: dict[int, tuple[Jpeg, Request]] = {}  # by place in the batch
        unreadable: list[tuple[str, str]] = []
        name = reason = ""
        for request in requests:
            for index in self._candidates(*request):
                try:
                    image = self._load(index, *request, size)
                    if isinstance(image, Jpeg):
                        jpegs[len(ids)] = image, request
                    else:
                        pixels[len(ids) - len(jpegs)] = image
                    ids.append(index)
                    break
                except Exception as error:  # decoders raise nearly anything for a damaged file
                    name, reason = self._dataset.describe(index), _reason(error)
                    if not self._forgiving:
                        return RunError(f"{name} cannot be loaded: {reason}")
                    unreadable.append((name, reason))
            else:
                if self._train:
                    return RunError(f"{len(unreadable)} images in a row cannot be read; the last is {name}: {reason}")
        count = len(ids) - len(jpegs)
        made = torch.from_numpy(pixels if count == len(pixels) else pixels[:count].copy())  # its whole memory travels
        if self._train and in_worker_process(self._settings):
            made = augmented(made, self._settings, requests[0][0], torch.tensor([draw for _, draw in requests]))
        return Loaded(made, ids, unreadable, pack(jpegs))

    def _candidates(self, epoch: int, draw: int) -> Iterator[int]:
        """The image itself and, in training, those that take its place if it is unreadable: of its class, then of any."""
        n = len(self._dataset)
        index = draw % n
        yield index
        if not self._train:
            return
        labels = self._dataset.labels.numpy()
        alike = np.flatnonzero(labels == labels[index])
        start = rng.hash_word(self._seed, epoch, draw, _SUBSTITUTE_STREAMS)
        for number in range(min(OF_CLASS, len(alike))):
            yield int(alike[(start + number) % len(alike)])
        for number in range(OF_ANY):
            yield rng.hash_word(self._seed, epoch, draw, _SUBSTITUTE_STREAMS + 1 + number) % n

    def _load(self, index: int, epoch: int, draw: int, size: int) -> np.ndarray | Jpeg:
        """The square, uint8 ``[size, size, C]``, or what the device makes it of."""

        def place(height: int, width: int) -> CropSpec:
            if self._train:
                return train_crop(height, width, self._seed, epoch, draw, self._settings.hflip)
            return eval_crop(height, width, size, self._resize)

        if isinstance(self._dataset, EncodedDataset):
            data = self._dataset.read(index)
            jpeg = for_device(data, place, size) if self._hands_over else None
            decoder = jpeg_decoder() if self._settings.native else None
            return decode_crop(data, place, size, decoder) if jpeg is None else jpeg
        image = self._dataset.load(index)
        return crop_array(image, place(*image.shape[:2]), size)


def in_worker_process(settings: Settings) -> bool:
    """A CPU that trains has nothing to spare; any other device makes a batch in far less time than a worker process.

    Where the device decodes there are no pixels before.
    """
    return settings.augmentation.of_bytes and settings.device.type == "cpu" and not settings.decode_on_device


def augmented(pixels: Tensor, settings: Settings, epoch: int, draws: Tensor) -> Tensor:
    """Bytes to bytes, ``[n, S, S, C]``."""
    made = settings.augmentation.on_bytes(pixels.permute(0, 3, 1, 2), Samples(settings.seed, epoch, draws))
    return made.permute(0, 2, 3, 1).contiguous()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = re.sub(r" ?<_io\.BytesIO object at \w+>", "", str(error))
    return " ".join(text.split()) or type(error).__name__
