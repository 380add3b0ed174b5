"""Batches of a data set whose images lie in files: loading processes decode and cut, the device normalises."""

import re
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pycls.data import rng
from pycls.data.batch import Batch, Settings
from pycls.data.crops import EVAL_RATIO, eval_cut, train_cut
from pycls.data.cut import Cut, cut_array
from pycls.data.dataset import EncodedDataset, FileDataset
from pycls.data.decoding import decode_cut
from pycls.data.native import jpeg_cutter
from pycls.data.pixels import Normalise
from pycls.data.policies import Samples
from pycls.errors import RunError

Request = tuple[int, int]  # (epoch, draw): all that a sample is a function of, besides the seed

OF_CLASS, OF_ANY = 100, 20
"""How many other images are tried in the place of an unreadable one: first of its class, then of any."""
_SUBSTITUTE_STREAMS = 200  # the first of the streams of this file: one for the class, then one for each try


class _Loaded(NamedTuple):
    """What a loading process hands over.

    Attributes:
        pixels: uint8 ``[n, S, S, C]``.
        ids: of the images shown, ``n``.
        unreadable: (name, reason) of those that could not be.
    """

    pixels: Tensor
    ids: list[int]
    unreadable: list[tuple[str, str]]


class _Loading(TorchDataset[_Loaded]):
    """What runs in a loading process: a list of requests -> their pixels, or the error that ends the run.

    The error is returned, not raised: PyTorch would wrap it in the traceback of the process.
    """

    def __init__(self, dataset: FileDataset, settings: Settings) -> None:
        self._dataset = dataset
        self._settings = settings
        self._train, self._seed = settings.train, settings.seed
        self._resize = settings.resize or round(settings.im_size * EVAL_RATIO)
        self._forgiving = settings.unreadable is not None

    def __getitem__(self, request: Request) -> _Loaded:
        raise NotImplementedError("batches are fetched whole")

    def __getitems__(self, requests: list[Request]) -> _Loaded | RunError:
        size = self._settings.size_at(requests[0][0])
        pixels = np.empty((len(requests), size, size, self._dataset.channels), np.uint8)
        ids: list[int] = []
        unreadable: list[tuple[str, str]] = []
        name = reason = ""
        for epoch, draw in requests:
            for index in self._candidates(epoch, draw):
                try:
                    pixels[len(ids)] = self._pixels(index, epoch, draw, size)
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
        made = torch.from_numpy(pixels[: len(ids)])
        if self._train and _in_loading_process(self._settings):
            made = _augmented(made, self._settings, requests[0][0], torch.tensor([draw for _, draw in requests]))
        return _Loaded(made, ids, unreadable)

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

    def _pixels(self, index: int, epoch: int, draw: int, size: int) -> np.ndarray:
        def place(height: int, width: int) -> Cut:
            if self._train:
                return train_cut(height, width, self._seed, epoch, draw, self._settings.hflip)
            return eval_cut(height, width, size, self._resize)

        if isinstance(self._dataset, EncodedDataset):
            cutter = jpeg_cutter() if self._settings.native else None
            return decode_cut(self._dataset.read(index), place, size, cutter)
        image = self._dataset.load(index)
        return cut_array(image, place(*image.shape[:2]), size)


def _in_loading_process(settings: Settings) -> bool:
    """A CPU that trains has nothing to spare; any other device makes a batch in far less time than a loading process."""
    return settings.augmentation.of_bytes and settings.device.type == "cpu"


def _augmented(pixels: Tensor, settings: Settings, epoch: int, draws: Tensor) -> Tensor:
    """Bytes to bytes, ``[n, S, S, C]``."""
    made = settings.augmentation.on_bytes(pixels.permute(0, 3, 1, 2), Samples(settings.seed, epoch, draws))
    return made.permute(0, 2, 3, 1).contiguous()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = re.sub(r" ?<_io\.BytesIO object at \w+>", "", str(error))
    return " ".join(text.split()) or type(error).__name__


class _Requests:
    """The batch sampler: hands out the plan of the moment. Loading processes live on from one plan to the next."""

    def __init__(self) -> None:
        self.plan: list[list[Request]] = []

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C goes to the whole group of processes; the training process answers it for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class FileSource:
    """The pixels of a :class:`FileDataset`. One iteration at a time.

    Args:
        dataset: the data set.
        settings: how batches are made.

    Attributes:
        left_out: in evaluation, the images of the last iteration that could not be read.
    """

    def __init__(self, dataset: FileDataset, settings: Settings) -> None:
        self._settings = settings
        self._labels = dataset.labels
        self._std = dataset.std
        self._normalise = Normalise(dataset.mean, dataset.std, settings.channels_last, settings.device)
        self._requests = _Requests()
        self.left_out = 0
        if settings.native and isinstance(dataset, EncodedDataset):
            jpeg_cutter()  # compiled before there are processes that would all do so
        workers = settings.num_workers
        self._loader: DataLoader[_Loaded] = DataLoader(
            _Loading(dataset, settings),
            batch_sampler=self._requests,  # type: ignore[arg-type]  # any iterable with a length does
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=settings.pin_memory and settings.device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupts if workers else None,
            generator=torch.Generator(),  # its own, so that iterating leaves the process's generator alone
        )

    def batches(self, plan: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        """The batches of these draws, int64 ``[n]`` each, on the CPU; augmented as of ``epoch`` in training.

        In training another image of the class takes the place of one that cannot be read, the same in every run. In
        evaluation it is left out of its batch.

        Raises :class:`RunError` naming the file that cannot be loaded, or when a loading process dies.
        """
        self._requests.plan = [[(epoch, draw) for draw in draws.tolist()] for draws in plan]
        self.left_out = 0
        loaded: Iterator[Any] = iter(self._loader) if plan else iter(())
        for draws in plan:
            try:
                batch = next(loaded)
            except RuntimeError as error:
                raise RunError(f"a loading process ended: {' '.join(str(error).split())}") from error
            if isinstance(batch, RunError):
                raise batch
            for name, reason in batch.unreadable:
                assert self._settings.unreadable is not None
                self._settings.unreadable.add(name, reason)
            self.left_out += len(draws) - len(batch.ids)
            if batch.ids:
                yield self._finish(batch.pixels, torch.tensor(batch.ids), draws, epoch)

    def _finish(self, pixels: Tensor, ids: Tensor, draws: Tensor, epoch: int) -> Batch:
        settings, device = self._settings, self._settings.device
        pixels = pixels.to(device, non_blocking=True)
        if settings.train and settings.augmentation.of_bytes and not _in_loading_process(settings):
            pixels = _augmented(pixels, settings, epoch, draws)
        if not settings.channels_last:
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        images = self._normalise(pixels)
        if settings.train:
            images = settings.augmentation.on_floats(images, Samples(settings.seed, epoch, draws), self._std)
        return Batch(images, self._labels[ids].to(device, non_blocking=True), ids)
