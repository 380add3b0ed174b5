"""The order of the samples, and each process's share of it. Where pixels come from is the sources' matter.

Order is a pure function of (seed, epoch): the draws of a sampler, cut into global batches, of which process r of R takes
the r-th of R equal slices. The samples of a global batch are the same for any number of processes, and starting at batch k
costs nothing.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pycls.data.augment.augmentation import Augmentation
from pycls.data.batch import Batch, Settings
from pycls.data.dataset import ArrayDataset, FileDataset
from pycls.data.sampler import InstanceSampler, RepeatedSampler, Sampler
from pycls.data.sources.arrays import ArraySource
from pycls.data.sources.files import FileSource
from pycls.data.sources.unreadable import Unreadable

__all__ = ["Batch", "EvalLoader", "TrainLoader"]


def _make_source(dataset: ArrayDataset | FileDataset, settings: Settings) -> ArraySource | FileSource:
    return ArraySource(dataset, settings) if isinstance(dataset, ArrayDataset) else FileSource(dataset, settings)


def _check_shares(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"the batch size must be 1 or more, not {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"the rank must be in 0..{world_size - 1}, not {rank}")


def _check_sizes(im_sizes: Sequence[Sequence[int]]) -> None:
    if any(len(pair) != 2 for pair in im_sizes):
        raise ValueError(f"IM_SIZES is a list of [epoch, side], not {list(im_sizes)}")
    if any(side < 1 for _, side in im_sizes) or any(b[0] <= a[0] for a, b in pairwise([(-1, 1), *im_sizes])):
        raise ValueError(f"IM_SIZES: epochs from 0 on that increase, and sides from 1 on, not {list(im_sizes)}")


class TrainLoader:
    """Augmented batches in a sampler's order, an epoch at a time; the last, incomplete global batch is left out.

    Args:
        dataset: an :class:`ArrayDataset` or a :class:`FileDataset`.
        batch_size: over all processes; a multiple of ``world_size``, at most the size of the data set.
        sampler: which samples an epoch shows; None for each once.
        seed: of order and augmentation.
        rank: of this process.
        world_size: number of processes.
        device: where batches go.
        channels_last: memory order of the images.
        crop_padding: pixels of zeros around an image in memory before the random crop; -1 for the data set's own.
            Images in files have their random resized crop instead.
        hflip: flip half of the images left to right; None for the data set's own.
        im_size: side of an image in a batch; 0 for the data set's own. Images in memory are resized to it.
        im_sizes: ``(epoch, side)`` pairs, ascending: another side from that epoch (0-based) on.
        augmentation: what is done beside cutting and flipping; None for nothing.
        repeats: showings of a sample in a row, each augmented in its own way, of as many fewer samples.
        num_workers: worker processes for images in files.
        pin_memory: page-locked memory for images in files on their way to a GPU.
        native: whether the compiled JPEG decoder may be used, where there is one.
        decode_on_device: whether the device decodes JPEGs in files, not the worker processes.
        unreadable: account of the images that cannot be read; None to end with the first.
    """

    def __init__(
        self,
        dataset: ArrayDataset | FileDataset,
        batch_size: int,
        *,
        sampler: Sampler | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        crop_padding: int = -1,
        hflip: bool | None = None,
        im_size: int = 0,
        im_sizes: Sequence[Sequence[int]] = (),
        augmentation: Augmentation | None = None,
        repeats: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        native: bool = True,
        decode_on_device: bool = False,
        unreadable: Unreadable | None = None,
    ) -> None:
        _check_shares(batch_size, rank, world_size)
        if batch_size % world_size:
            raise ValueError(f"the batch size {batch_size} is not divisible by the number of processes, {world_size}")
        self._sampler = sampler or InstanceSampler(len(dataset))
        if repeats > len(dataset):
            raise ValueError(f"REPEATS must be at most {len(dataset)}, the training images of {dataset.name}, not {repeats}")
        if repeats > 1:
            self._sampler = RepeatedSampler(self._sampler, len(dataset), repeats)
        _check_sizes(im_sizes)
        if len(self._sampler) < batch_size:
            raise ValueError(f"{dataset.name} has {len(dataset)} training images, fewer than one batch of {batch_size}")
        self._batch_size, self._seed = batch_size, seed
        share = batch_size // world_size
        self._share = slice(rank * share, (rank + 1) * share)
        settings = Settings(
            train=True,
            device=torch.device(device),
            channels_last=channels_last,
            im_size=im_size or dataset.image_size,
            crop_padding=_padding(dataset, crop_padding),
            hflip=dataset.hflip if hflip is None else hflip,
            augmentation=augmentation or Augmentation(),
            im_sizes=im_sizes,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
            native=native,
            decode_on_device=decode_on_device,
            unreadable=unreadable,
        )
        self._source = _make_source(dataset, settings)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._sampler) // self._batch_size

    @property
    def decodes_on_device(self) -> bool:
        """Whether the device decodes JPEGs, and not worker processes."""
        return self._source.decodes_on_device

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's part of the global batches ``start``, ``start + 1``, ... of an epoch (both from 0 on)."""
        draws = self._sampler.draws(self._seed, epoch)[: len(self) * self._batch_size]
        shares = draws.view(len(self), self._batch_size)[start:, self._share]
        return self._source.batches(list(shares.contiguous()), epoch)


def _padding(dataset: ArrayDataset | FileDataset, wanted: int) -> int:
    """Pixels around an image; the data set's own for -1."""
    if wanted >= dataset.image_size:
        raise ValueError(f"CROP_PADDING must be below {dataset.image_size}, the side of an image, not {wanted}")
    return dataset.crop_padding if wanted < 0 else wanted


class EvalLoader:
    """Every sample once over all processes, in the order of the data set, as it is: iterate over the loader.

    Global batch b has the samples from ``b * batch_size`` on; a process takes its part of it, and parts differ by at
    most one sample. There is no padding: a process may have fewer batches than another, or none, so that sums over
    processes must not be taken batch by batch.

    Args:
        dataset: an :class:`ArrayDataset` or a :class:`FileDataset`.
        batch_size: over all processes.
        rank: of this process.
        world_size: number of processes.
        device: where batches go.
        channels_last: memory order of the images.
        im_size: side of an image in a batch; 0 for the data set's own.
        resize: (short) side that an image is resized to before its centre of ``im_size`` is cut out. 0: images in files
            by the usual 256 to 224, images in memory to ``im_size`` and nothing cut.
        num_workers: worker processes for images in files.
        pin_memory: page-locked memory for images in files on their way to a GPU.
        native: whether the compiled JPEG decoder may be used, where there is one.
        decode_on_device: whether the device decodes JPEGs in files, not the worker processes.
        unreadable: account of the images that cannot be read; None to end with the first.
    """

    def __init__(
        self,
        dataset: ArrayDataset | FileDataset,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        im_size: int = 0,
        resize: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        native: bool = True,
        decode_on_device: bool = False,
        unreadable: Unreadable | None = None,
    ) -> None:
        _check_shares(batch_size, rank, world_size)
        size = im_size or dataset.image_size
        if 0 < resize < size:
            raise ValueError(f"images resized to {resize} pixels (TEST.IM_SIZE) do not hold a centre of {size}")
        self._plan = _eval_plan(len(dataset), batch_size, rank, world_size)
        settings = Settings(
            train=False,
            device=torch.device(device),
            channels_last=channels_last,
            im_size=size,
            resize=resize,
            num_workers=num_workers,
            pin_memory=pin_memory,
            native=native,
            decode_on_device=decode_on_device,
            unreadable=unreadable,
        )
        self._source = _make_source(dataset, settings)

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self._plan)

    @property
    def left_out(self) -> int:
        """Images of this process that could not be read in the last iteration."""
        return self._source.left_out

    def __iter__(self) -> Iterator[Batch]:
        return self._source.batches(self._plan, 0)


def _eval_plan(n: int, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """The ids of each of a process's batches."""
    ids = torch.arange(n)
    parts = (batch.tensor_split(world_size)[rank] for batch in ids.split(batch_size))
    return [part for part in parts if len(part)]
