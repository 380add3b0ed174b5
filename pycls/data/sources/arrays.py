"""Batches of a data set that lies in memory: cropped, flipped and normalised a batch at a time, on the device."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pycls.data import rng
from pycls.data.augment.policies import Samples
from pycls.data.batch import Batch, Settings
from pycls.data.dataset import ArrayDataset
from pycls.data.images.pixels import Normalise, centre, resize


class ArraySource:
    """The pixels of an :class:`ArrayDataset`, held once on the device as bytes with their border of zeros.

    A crop is read as whole rows out of the bytes: row ``r`` of the crop at ``(top, left)`` of image ``i`` is the window
    of ``W`` pixels that starts at pixel ``left`` of row ``top + r``. One ``index_select`` over all windows of the bytes
    (a view) fetches every row of a batch, without an intermediate copy.

    Args:
        dataset: the data set.
        settings: how batches are made.
    """

    left_out = 0
    """Images that could not be read: none."""
    decodes_on_device = False
    """There is nothing to decode."""

    def __init__(self, dataset: ArrayDataset, settings: Settings) -> None:
        self._settings = settings
        # The windows overlap, which Apple's backend can only do by copying each of them: there the bytes stay on the
        # host.
        home = torch.device("cpu") if settings.device.type == "mps" else settings.device
        images = dataset.images.permute(0, 2, 3, 1) if settings.channels_last else dataset.images
        self._padding = settings.crop_padding if settings.train else 0
        if self._padding:
            border = (self._padding,) * 4
            images = F.pad(images, (0, 0, *border) if settings.channels_last else border)
        self._pixels = images.contiguous().to(home)
        self._labels = dataset.labels.to(settings.device)
        self._side, self._channels = dataset.image_size, dataset.channels
        self._std = dataset.std
        self._normalise = Normalise(dataset.mean, dataset.std, settings.channels_last, settings.device)

    def batches(self, plan: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        """The batches of these draws, int64 ``[n]`` each, on the CPU; augmented as of ``epoch`` in training."""
        if not self._settings.train:
            yield from (self._finish(self._pixels[self._place(ids)], ids, None) for ids in plan)
        elif plan:
            yield from self._augmented(plan, epoch)

    def _place(self, ids: Tensor) -> Tensor | slice:
        """Index of these images: a slice, which copies nothing, where they follow one another."""
        first, last = int(ids[0]), int(ids[-1])
        if last - first == len(ids) - 1 and bool((ids.diff() == 1).all()):
            return slice(first, last + 1)
        return ids.to(self._pixels.device)

    def _augmented(self, plan: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        """Random numbers and addresses are computed for the whole epoch at once: a few large operations, not many."""
        draws = torch.cat(list(plan))
        ids = draws % len(self._labels)
        sizes = [len(part) for part in plan]
        home = self._pixels.device
        starts = self._crop_starts(draws, ids, epoch).to(home, non_blocking=True).split(sizes)
        flipped, counts = self._flip_places(draws, epoch, sizes)
        flips = flipped.to(home, non_blocking=True).split(counts)
        row, windows = self._row_windows()
        batches = zip(draws.split(sizes), ids.split(sizes), starts, flips, strict=True)
        for own, part, start, flip in batches:
            pixels = windows.index_select(0, (start[:, None] + row).view(-1)).view(-1, *self._crop_shape())
            if len(flip):
                columns = 2 if self._settings.channels_last else 3
                pixels.index_copy_(0, flip, pixels.index_select(0, flip).flip(columns))
            yield self._finish(pixels, part, Samples(self._settings.seed, epoch, own))

    def _crop_shape(self) -> tuple[int, ...]:
        side, channels = self._side, self._channels
        return (side, side, channels) if self._settings.channels_last else (channels, side, side)

    def _crop_starts(self, draws: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """The address of the first byte of each draw's crop, int64 ``[n]``."""
        places, step = 2 * self._padding + 1, self._channels if self._settings.channels_last else 1
        seed = self._settings.seed
        top = rng.integers(seed, epoch, draws, rng.TOP, places)
        left = rng.integers(seed, epoch, draws, rng.LEFT, places)
        width = self._side + 2 * self._padding
        return ids * (width * width * self._channels) + top * (width * step) + left * step

    def _flip_places(self, draws: Tensor, epoch: int, sizes: list[int]) -> tuple[Tensor, list[int]]:
        """Positions within their batch of the draws to flip, all batches' in a row, and how many each batch has."""
        if not self._settings.hflip:
            return torch.empty(0, dtype=torch.int64), [0] * len(sizes)
        bits = rng.hash64(self._settings.seed, epoch, draws, rng.FLIP)
        places = [(part < 0).nonzero()[:, 0] for part in bits.split(sizes)]
        return torch.cat(places), [len(part) for part in places]

    def _row_windows(self) -> tuple[Tensor, Tensor]:
        """Addresses of a crop's rows from its first byte on, int64 ``[rows]``, and all windows of a row's length."""
        width, side = self._side + 2 * self._padding, self._side
        if self._settings.channels_last:
            row, length = torch.arange(side) * (width * self._channels), side * self._channels
        else:
            planes = torch.arange(self._channels) * (width * width)
            row, length = (planes[:, None] + torch.arange(side) * width).view(-1), side
        return row.to(self._pixels.device), self._pixels.view(-1).unfold(0, length, 1)

    def _finish(self, pixels: Tensor, ids: Tensor, samples: Samples | None) -> Batch:
        """Bytes to the batch; ``samples`` in training."""
        settings = self._settings
        pixels = pixels.to(settings.device, non_blocking=True)
        if samples is not None and settings.augmentation.of_bytes:
            upright = pixels.permute(0, 3, 1, 2) if settings.channels_last else pixels
            made = settings.augmentation.on_bytes(upright, samples)
            pixels = (made.permute(0, 2, 3, 1) if settings.channels_last else made).contiguous()
        images = self._normalise(pixels)
        if samples is not None:
            images = resize(images, settings.size_at(samples.epoch))
            images = settings.augmentation.on_floats(images, samples, self._std)
        elif settings.resize:
            images = centre(resize(images, settings.resize), settings.im_size)
        else:
            images = resize(images, settings.im_size)
        order = torch.channels_last if settings.channels_last else torch.contiguous_format
        labels = self._labels.index_select(0, ids.to(settings.device, non_blocking=True))
        return Batch(images.contiguous(memory_format=order), labels, ids)
