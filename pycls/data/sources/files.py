"""Batches of a data set whose images lie in files: worker processes decode and crop, or the device does; it normalises."""

import contextlib
import signal
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pycls.data.augment.policies import Samples
from pycls.data.batch import Batch, Request, Settings
from pycls.data.dataset import EncodedDataset, FileDataset
from pycls.data.images.device_jpegs import DeviceDecoder
from pycls.data.images.jpeg_decoder import jpeg_decoder
from pycls.data.images.pixels import Normalise
from pycls.data.sources.prefetch import prefetch
from pycls.data.sources.worker import BatchWorker, Loaded, augmented, in_worker_process
from pycls.errors import RunError

PREFETCH = 2
"""Batches that the device has decoded before they are asked for."""


class _Requests:
    """The batch sampler: hands out the plan of the moment. Worker processes live on from one plan to the next."""

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


def _next(handed_over: Iterator[Any]) -> Loaded:
    """Raises :class:`RunError` where a worker process hands over an error, or has ended."""
    try:
        loaded = next(handed_over)
    except RuntimeError as error:
        raise _ended(error) from error
    if isinstance(loaded, RunError):
        raise loaded
    assert isinstance(loaded, Loaded)
    return loaded


def _next_prefetched(made: Iterator[Loaded]) -> Loaded:
    """The next batch; PyTorch reports a dead worker process in the main thread, whichever thread waits for it."""
    try:
        return next(made)
    except RuntimeError as error:
        if isinstance(error, RunError) or "DataLoader worker" not in str(error):
            raise
        raise _ended(error) from error


def _ended(error: RuntimeError) -> RunError:
    return RunError(f"a worker process ended: {' '.join(str(error).split())}")


class FileSource:
    """The pixels of a :class:`FileDataset`. One iteration at a time.

    Args:
        dataset: the data set.
        settings: how batches are made.

    Attributes:
        left_out: in evaluation, the images of the last iteration that could not be read.
        decodes_on_device: whether the device decodes JPEGs.
    """

    def __init__(self, dataset: FileDataset, settings: Settings) -> None:
        self._settings = settings
        self._labels = dataset.labels
        self._std = dataset.std
        self._normalise = Normalise(dataset.mean, dataset.std, settings.channels_last, settings.device)
        self._requests = _Requests()
        self.left_out = 0
        if settings.native and isinstance(dataset, EncodedDataset):
            jpeg_decoder()  # compiled before there are processes that would all do so
        self.decodes_on_device = settings.decode_on_device and isinstance(dataset, EncodedDataset)
        again = BatchWorker(dataset, settings).__getitems__
        self._decoder = DeviceDecoder(settings.device, again) if self.decodes_on_device else None
        workers = settings.num_workers
        self._loader: DataLoader[Loaded] = DataLoader(
            BatchWorker(dataset, settings, hands_over=self.decodes_on_device),
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

        Raises :class:`RunError` naming the file that cannot be loaded, or when a worker process dies.
        """
        self._requests.plan = [[(epoch, draw) for draw in draws.tolist()] for draws in plan]
        self.left_out = 0
        with contextlib.closing(self._loaded(len(plan))) as coming:
            for draws, loaded in zip(plan, coming, strict=True):
                for name, reason in loaded.unreadable:
                    assert self._settings.unreadable is not None
                    self._settings.unreadable.add(name, reason)
                self.left_out += len(draws) - len(loaded.ids)
                if loaded.ids:
                    yield self._finish(loaded.pixels, torch.tensor(loaded.ids), draws, epoch)

    def _loaded(self, count: int) -> Generator[Loaded, None, None]:
        """What the worker processes hand over, with nothing left to decode."""
        if not count:
            return
        handed_over, decoder = iter(self._loader), self._decoder
        if decoder is None:
            for _ in range(count):
                yield _next(handed_over)
            return
        with contextlib.closing(prefetch(lambda: decoder(_next(handed_over)), count, PREFETCH)) as made:
            for _ in range(count):
                loaded = _next_prefetched(made)
                if loaded.pixels.is_cuda:  # of the decoder's stream, which is not to reuse them before this one has read them
                    loaded.pixels.record_stream(torch.cuda.current_stream(loaded.pixels.device))
                yield loaded

    def _finish(self, pixels: Tensor, ids: Tensor, draws: Tensor, epoch: int) -> Batch:
        settings, device = self._settings, self._settings.device
        pixels = pixels.to(device, non_blocking=True)
        if settings.train and settings.augmentation.of_bytes and not in_worker_process(settings):
            pixels = augmented(pixels, settings, epoch, draws)
        if not settings.channels_last:
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        images = self._normalise(pixels)
        if settings.train:
            images = settings.augmentation.on_floats(images, Samples(settings.seed, epoch, draws), self._std)
        return Batch(images, self._labels[ids].to(device, non_blocking=True), ids)
