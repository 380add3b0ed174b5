"""Order, shares, crops and flips, against definitions written out sample by sample."""

import pytest
import torch
import torch.nn.functional as F
from data_makers import array_dataset

from pycls.data import rng
from pycls.data.loader import EvalLoader, TrainLoader


def ids_of(batches):
    return [batch.ids.tolist() for batch in batches]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_global_batches_do_not_depend_on_the_number_of_processes(world_size):
    data = array_dataset(100)
    loaders = [TrainLoader(data, 12, seed=5, rank=r, world_size=world_size) for r in range(world_size)]
    for epoch in (0, 1):
        parts = [ids_of(loader.epoch(epoch)) for loader in loaders]
        batches = [[i for part in parts for i in part[b]] for b in range(8)]
        assert len(loaders[0]) == len(parts[0]) == 8
        assert batches == rng.permutation(100, 5, epoch)[:96].view(8, 12).tolist()
        seen = [i for batch in batches for i in batch]
        assert len(set(seen)) == 96  # nobody twice; the last 4 have no batch


@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels_do_not_depend_on_the_number_of_processes(channels_last):
    data = array_dataset(50, channels=3, crop_padding=2, hflip=True)
    whole = list(TrainLoader(data, 6, seed=5, channels_last=channels_last).epoch(3))
    loaders = [
        TrainLoader(data, 6, seed=5, rank=r, world_size=3, channels_last=channels_last).epoch(3) for r in range(3)
    ]
    for batch, parts in zip(whole, zip(*loaders, strict=True), strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.labels, torch.cat([part.labels for part in parts]))


def test_start_is_skipping():
    loader = TrainLoader(array_dataset(50, crop_padding=1, hflip=True), 8)
    whole = list(loader.epoch(2))
    for start in range(7):
        rest = list(loader.epoch(2, start))
        assert len(rest) == 6 - start
        for a, b in zip(rest, whole[start:], strict=True):
            assert a.ids.tolist() == b.ids.tolist() and torch.equal(a.images, b.images)


def test_seeds_and_epochs_differ():
    loader = TrainLoader(array_dataset(64), 64, seed=1)
    orders = [
        *(ids_of(loader.epoch(e))[0] for e in range(3)),
        ids_of(TrainLoader(array_dataset(64), 64, seed=2).epoch(0))[0],
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(64)) for order in orders)


def reference(data, index, seed, epoch, padding, hflip):
    """One augmented, normalised sample in float64, step by step."""
    ids = torch.tensor([index])
    image = F.pad(data.images[index], (padding,) * 4)
    top = rng.hash_word(seed, epoch, index, rng.TOP) >> 32
    left = int(rng.integers(seed, epoch, ids, rng.LEFT, 2 * padding + 1))
    top = top * (2 * padding + 1) >> 32
    image = image[:, top : top + data.image_size, left : left + data.image_size]
    if hflip and float(rng.uniform(seed, epoch, ids, rng.FLIP)) >= 0.5:
        image = image.flip(-1)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (data.mean, data.std))
    return (image.double() / 255 - mean) / std


@pytest.mark.parametrize("channels, side", [(1, 8), (3, 5), (3, 32)])
@pytest.mark.parametrize("padding, hflip", [(0, False), (2, False), (0, True), (4, True)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_crop_and_flip(channels, side, padding, hflip, channels_last):
    data = array_dataset(40, side, channels)
    loader = TrainLoader(data, 20, seed=9, crop_padding=padding, hflip=hflip, channels_last=channels_last)
    for batch in loader.epoch(4):
        assert batch.images.dtype == torch.float32 and batch.images.shape == (20, channels, side, side)
        order = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=order)
        expected = torch.stack([reference(data, i, 9, 4, padding, hflip) for i in batch.ids.tolist()])
        torch.testing.assert_close(batch.images.double(), expected, rtol=1e-5, atol=1e-6)
        assert batch.labels.tolist() == data.labels[batch.ids].tolist()
        assert batch.ids.dtype == batch.labels.dtype == torch.int64


def test_every_crop_and_both_flips_occur():
    """A white pixel in the middle tells where it went."""
    images = torch.zeros(2000, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 1] = 255
    data = array_dataset(2000, 5, images=images, mean=(0.0,), std=(1.0,))
    (batch,) = TrainLoader(data, 2000, crop_padding=1, hflip=True).epoch(0)
    places = batch.images.view(2000, 25).argmax(1)
    counts = torch.bincount(places, minlength=25).view(5, 5)
    assert counts.sum() == 2000
    inner = counts[1:4]
    assert counts[[0, 4]].sum() == 0
    # Columns 0..2, or mirrored 4..2: the middle is reached both ways, the others one way.
    assert ((inner / 2000 - torch.tensor([1, 1, 2, 1, 1]) / 18).abs() < 0.03).all()


def test_the_set_says_how_it_is_augmented_unless_told_otherwise():
    data = array_dataset(20, crop_padding=2, hflip=True)
    (own,) = TrainLoader(data, 20).epoch(0)
    (same,) = TrainLoader(data, 20, crop_padding=2, hflip=True).epoch(0)
    (none,) = TrainLoader(data, 20, crop_padding=0, hflip=False).epoch(0)
    assert torch.equal(own.images, same.images)
    (still,) = EvalLoader(data, 20)
    assert torch.equal(none.images, still.images[none.ids])
    assert not torch.equal(own.images, none.images)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 1000, 20_000])
def test_evaluation_sees_each_of_10007_samples_once(world_size, batch_size):
    data = array_dataset(10_007 if batch_size >= 1000 else 107, 2)  # small batches of few, for time's sake
    correct, seen = 0, []
    for rank in range(world_size):
        loader = EvalLoader(data, batch_size, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            assert len(batch.ids) > 0
            seen += batch.ids.tolist()
            correct += int((batch.images.sum((1, 2, 3)) > 0).sum())
    assert sorted(seen) == list(range(len(data)))
    (whole,) = EvalLoader(data, 20_000)
    assert correct == int((whole.images.sum((1, 2, 3)) > 0).sum())


def test_a_process_may_have_nothing_to_evaluate():
    loader = EvalLoader(array_dataset(2), 100, rank=2, world_size=3)
    assert len(loader) == 0 and list(loader) == []


@pytest.mark.parametrize("channels_last", [False, True])
def test_other_sizes(channels_last):
    data = array_dataset(10, 8, 3)
    (native,) = EvalLoader(data, 10, channels_last=channels_last)
    (larger,) = EvalLoader(data, 10, im_size=12, channels_last=channels_last)
    (cut,) = EvalLoader(data, 10, im_size=8, resize=12, channels_last=channels_last)
    (train,) = TrainLoader(data, 10, im_size=4, channels_last=channels_last).epoch(0)
    resized = F.interpolate(native.images, (12, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(larger.images, resized)
    torch.testing.assert_close(cut.images, resized[:, :, 2:10, 2:10])
    assert train.images.shape == (10, 3, 4, 4)
    with pytest.raises(ValueError, match=r"resized to 6 pixels \(TEST.IM_SIZE\) do not hold a centre of 8"):
        EvalLoader(data, 10, resize=6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 51}, "50 training images, fewer than one batch of 51"),
        ({"batch_size": 10, "world_size": 3}, "10 is not divisible by the number of processes, 3"),
        ({"batch_size": 0}, "1 or more"),
        ({"batch_size": 10, "rank": 2, "world_size": 2}, r"rank must be in 0\.\.1"),
    ],
)
def test_shares_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainLoader(array_dataset(50), **arguments)


def test_loading_leaves_the_hidden_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    data = array_dataset(50, crop_padding=2, hflip=True)
    list(TrainLoader(data, 10).epoch(0))
    list(EvalLoader(data, 10))
    assert torch.equal(torch.get_rng_state(), before)
