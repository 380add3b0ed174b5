"""Batches of a data set whose images lie in files: loading processes decode and cut, the device normalises."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pycls.data.batch import Batch, Settings
from pycls.data.dataset import EncodedDataset, FileDataset
from pycls.data.loading import Loaded, Loading, Request, augmented, in_loading_process
from pycls.data.native import jpeg_cutter
from pycls.data.pixels import Normalise
from pycls.data.policies import Samples
from pycls.errors import RunError


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
        self._loader: DataLoader[Loaded] = DataLoader(
            Loading(dataset, settings),
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
        if settings.train and settings.augmentation.of_bytes and not in_loading_process(settings):
            pixels = augmented(pixels, settings, epoch, draws)
        if not settings.channels_last:
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        images = self._normalise(pixels)
        if settings.train:
            images = settings.augmentation.on_floats(images, Samples(settings.seed, epoch, draws), self._std)
        return Batch(images, self._labels[ids].to(device, non_blocking=True), ids)
