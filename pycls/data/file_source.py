"""Batches of a data set whose images lie in files: loading processes decode and cut, the device normalises."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pycls.data.batch import Batch, Settings
from pycls.data.crops import EVAL_RATIO, eval_crop, train_crop
from pycls.data.dataset import FileDataset
from pycls.data.pixels import Normalise
from pycls.errors import RunError

Request = tuple[int, int]  # (epoch, id): all that a sample is a function of, besides the seed


class _Loading(TorchDataset[Tensor]):
    """What runs in a loading process: a list of requests -> uint8 ``[n, S, S, C]``, or the error that ended it.

    The error is returned, not raised: PyTorch would wrap it in the traceback of the process.
    """

    def __init__(self, dataset: FileDataset, settings: Settings) -> None:
        self._dataset = dataset
        self._train, self._seed, self._hflip = settings.train, settings.seed, settings.hflip
        self._size = settings.im_size
        self._resize = settings.resize or round(settings.im_size * EVAL_RATIO)

    def __getitem__(self, request: Request) -> Tensor:
        raise NotImplementedError("batches are fetched whole")

    def __getitems__(self, requests: list[Request]) -> Tensor | RunError:
        pixels = np.empty((len(requests), self._size, self._size, self._dataset.channels), np.uint8)
        for place, (epoch, index) in enumerate(requests):
            try:
                pixels[place] = self._cut(self._dataset.load(index), epoch, index)
            except Exception as error:  # decoders raise nearly anything for a damaged file
                reason = " ".join(str(error).split()) or type(error).__name__
                return RunError(f"{self._dataset.describe(index)} cannot be loaded: {reason}")
        return torch.from_numpy(pixels)

    def _cut(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        if self._train:
            return train_crop(image, self._size, self._seed, epoch, index, self._hflip)
        return eval_crop(image, self._size, self._resize)


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
    """

    def __init__(self, dataset: FileDataset, settings: Settings) -> None:
        self._settings = settings
        self._labels = dataset.labels
        self._normalise = Normalise(
            dataset.mean, dataset.std, settings.channels_last, settings.im_size, settings.device
        )
        self._requests = _Requests()
        workers = settings.num_workers
        self._loader: DataLoader[Tensor] = DataLoader(
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
        """The batches with these ids, int64 ``[n]`` each, on the CPU; augmented as of ``epoch`` in training.

        Raises :class:`RunError` naming the file that cannot be loaded, or when a loading process dies.
        """
        self._requests.plan = [[(epoch, index) for index in ids.tolist()] for ids in plan]
        loaded: Iterator[Any] = iter(self._loader) if plan else iter(())
        for ids in plan:
            try:
                pixels = next(loaded)
            except RuntimeError as error:
                raise RunError(f"a loading process ended: {' '.join(str(error).split())}") from error
            if isinstance(pixels, RunError):
                raise pixels
            yield self._finish(pixels, ids)

    def _finish(self, pixels: Tensor, ids: Tensor) -> Batch:
        device = self._settings.device
        pixels = pixels.to(device, non_blocking=True)
        if not self._settings.channels_last:
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        return Batch(self._normalise(pixels), self._labels[ids].to(device, non_blocking=True), ids)
