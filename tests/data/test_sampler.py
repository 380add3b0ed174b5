"""Every sampler against its definition, over many epochs and many processes."""

import pytest
import torch
from data_makers import array_dataset

from pycls.data.loader import TrainLoader
from pycls.data.sampler import ClassAwareSampler, PowerSampler, RepeatFactorSampler, Sampler, make_sampler

SIZES = [60, 30, 8, 3, 1]
LABELS = torch.arange(5).repeat_interleave(torch.tensor(SIZES))[torch.randperm(102, generator=torch.Generator().manual_seed(0))]
NAMES = ["instance", "class_aware", "class_balanced", "square_root", "repeat_factor"]


def sampler(name: str) -> Sampler:
    return make_sampler(name, LABELS, per_class=4, threshold=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_epochs_are_functions_of_seed_and_epoch(name: str) -> None:
    orders = [sampler(name).draws(seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    again = sampler(name).draws(1, 0)
    assert torch.equal(orders[0], again) and not any(torch.equal(again, other) for other in orders[1:])
    for draws in orders:
        assert len(draws) == len(sampler(name)) and draws.dtype == torch.int64
        assert len(draws.unique()) == len(draws), "no two showings of a sample in an epoch are the same draw"
        for sample in range(102):  # a sample's draws count from 0
            turns = sorted((draws[draws % 102 == sample] // 102).tolist())
            assert turns == list(range(len(turns)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_global_batches_do_not_depend_on_the_number_of_processes_nor_on_the_start(name: str, world_size: int) -> None:
    data = array_dataset(102, 4, labels=LABELS, class_names=list("abcde"), crop_padding=1, hflip=True)
    draws = sampler(name).draws(7, 3)
    loaders = [TrainLoader(data, 20, sampler=sampler(name), seed=7, rank=r, world_size=world_size) for r in range(world_size)]
    for start in (0, 2):
        parts = [list(loader.epoch(3, start)) for loader in loaders]
        batches = [torch.cat([b.ids for b in group]) for group in zip(*parts, strict=True)]
        assert torch.equal(torch.cat(batches), draws[20 * start : len(draws) // 20 * 20] % 102)
    whole = list(TrainLoader(data, 20, sampler=sampler(name), seed=7).epoch(3, 2))
    for batch, group in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(batch.images, torch.cat([b.images for b in group]))
        assert torch.equal(batch.labels, LABELS[batch.ids])


def test_class_aware_cycles() -> None:
    one = ClassAwareSampler(LABELS, 4)
    assert len(one) == 60 * 5
    rounds = []
    for epoch in range(2):
        ids = one.draws(0, epoch) % 102
        runs = LABELS[ids].view(-1, 4)
        assert (runs == runs[:, :1]).all(), "four of a class in a row"
        order = runs[:, 0].view(-1, 5)
        assert (order.sort(dim=1).values == torch.arange(5)).all(), "each class once in a round"
        rounds += [tuple(row) for row in order.tolist()]
        for label, size in enumerate(SIZES):
            of_class = ids[LABELS[ids] == label]
            assert len(of_class) == 60
            for turn in of_class.split(size):  # all of a class before any of it again
                assert len(turn.unique()) == len(turn)
    assert len(set(rounds)) > 15, "rounds are shuffled again"


def test_class_aware_where_the_last_round_is_not_whole() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    for per_class in (1, 2, 3, 4, 9):
        draws = ClassAwareSampler(labels, per_class).draws(0, 0)
        assert len(draws) == 10 and len(draws.unique()) == 10


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_power_sampler_has_the_published_probabilities(power: float) -> None:
    one = PowerSampler(LABELS, power)
    ids = torch.cat([one.draws(5, epoch) % 102 for epoch in range(300)])
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    expected = sizes**power / (sizes**power).sum()
    found = torch.bincount(LABELS[ids], minlength=5) / len(ids)
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / len(ids)).sqrt()).all()
    within = torch.bincount(ids, minlength=102)[LABELS == 1] / (len(ids) * expected[1])
    assert ((within - 1 / 30).abs() < 0.012).all(), "images of a class are equally likely"


def test_repeat_factors() -> None:
    """r = max(1, sqrt(t / f)): the average over epochs is the factor, an epoch has its floor or one more."""
    one = RepeatFactorSampler(LABELS, 0.2)
    factors = (0.2 / (torch.tensor(SIZES) / 102)).sqrt().clamp(min=1)[LABELS]
    assert len(one) == int(factors.sum())
    times = torch.stack([torch.bincount(one.draws(5, epoch) % 102, minlength=102) for epoch in range(400)]).double()
    assert (times >= factors.floor() - 1).all() and (times <= factors.floor() + 1).all()
    assert ((times.mean(dim=0) - factors).abs() < 0.12).all()


def test_a_large_threshold_repeats_all_alike() -> None:
    labels = torch.arange(50) % 5
    assert len(RepeatFactorSampler(labels, 0.2 * 4)) == 100


def test_classes_without_images_are_passed_over() -> None:
    labels = torch.tensor([0, 0, 3, 3, 3])
    for name in NAMES:
        assert set(labels[make_sampler(name, labels).draws(0, 0) % 5].tolist()) <= {0, 3}


def test_a_repeated_sample_looks_different() -> None:
    """A class of one image: its showings in an epoch have other crops."""
    data = array_dataset(102, 16, labels=LABELS, class_names=list("abcde"), crop_padding=4, hflip=True)
    (batch,) = TrainLoader(data, 300, sampler=ClassAwareSampler(LABELS)).epoch(0)
    alone = batch.images[batch.labels == 4].flatten(1)
    assert len(alone) == 60 and len(alone.unique(dim=0)) > 40


def test_a_million_samples_take_seconds() -> None:
    """The order of an epoch is made in one piece: linear in its length."""
    labels = (torch.arange(200_000).double().sqrt() * 2).long()
    for name in NAMES:
        assert len(make_sampler(name, labels).draws(0, 0)) >= 200_000
