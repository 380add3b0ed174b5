"""The published counts, the measured noise, and that data are drawn once."""

import io

import numpy as np
import pytest
import torch
from data_makers import array_dataset

from pycls.data.subset.label_noise import noisy_labels
from pycls.data.subset.long_tail import exponential_profile, keep_profile, long_tail, pareto_profile
from pycls.data.subset.subset_spec import SubsetSpec, make_subset
from pycls.errors import InputError


@pytest.mark.parametrize(
    "largest, classes, imbalance, total",
    [
        (5000, 10, 10, 20431), (5000, 10, 50, 13996), (5000, 10, 100, 12406), (5000, 10, 200, 11203),
        (500, 100, 10, 19573), (500, 100, 50, 12608), (500, 100, 100, 10847), (500, 100, 200, 9502),
    ],
)  # fmt: skip
def test_cifar_lt_counts(largest: int, classes: int, imbalance: int, total: int) -> None:
    """Those of the public lists (Cao et al. 2019), class by class by the formula in exact arithmetic."""
    profile = exponential_profile(largest, classes, imbalance)
    assert int(profile.sum()) == total and int(profile[0]) == largest
    assert (profile.diff() <= 0).all()
    for j, count in enumerate(profile.tolist()):  # count <= n r^(-j/(K-1)) < count + 1, raised to the power K - 1
        power = classes - 1
        assert max(count, 1) ** power * imbalance**j <= largest**power or count == 1
        assert (count + 1) ** power * imbalance**j > largest**power


def test_pareto_tail_is_imagenet_lts() -> None:
    """1,280 to 5 images; the published total of 115,846 and the groups of 385, 479 and 136 classes within a few percent."""
    profile = pareto_profile(1280, 5, 1000)
    assert int(profile[0]) == 1280 and int(profile[-1]) == 5 and (profile.diff() <= 0).all()
    assert abs(int(profile.sum()) / 115_846 - 1) < 0.03
    groups = [int((profile > 100).sum()), int(((profile <= 100) & (profile >= 20)).sum()), int((profile < 20).sum())]
    assert np.abs(np.subtract(groups, [385, 479, 136])).max() <= 11


def test_a_stronger_tail_is_part_of_a_weaker_one_and_other_seeds_differ() -> None:
    labels = torch.arange(2000) % 10
    weak, strong, other = (long_tail(labels, 10, "exponential", i, 0, 5, seed) for i, seed in ((10, 0), (100, 0), (10, 1)))
    assert set(strong.tolist()) < set(weak.tolist()) and set(weak.tolist()) != set(other.tolist())
    assert torch.equal(torch.bincount(labels[strong]), exponential_profile(200, 10, 100))
    assert torch.equal(strong, strong.sort().values)


def test_tails_that_cannot_be() -> None:
    assert keep_profile(torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([3, 3]), 0).tolist()[-2:] == [4, 5], "all there are"
    with pytest.raises(InputError, match=r"SMALLEST must be 1\.\.4"):
        long_tail(torch.arange(10) % 2, 2, "pareto", 1, 0, 9, 0)


N, K = 60_000, 20
LABELS = torch.arange(N) % K
SUPERCLASS = torch.arange(K) * 7 % 20 // 4  # groups of 4 that are not consecutive


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("kind", ["symmetric", "pairs", "superclass", "blocks"])
def test_measured_noise(kind: str, rate: float) -> None:
    noisy = noisy_labels(LABELS, K, kind, rate, seed=0, superclass=SUPERCLASS)
    wrong = noisy != LABELS
    expected = rate * (0.8 if kind == "blocks" else 1.0)  # one in five redraws is the true label
    assert abs(float(wrong.double().mean()) - expected) < 4 * (0.25 / N) ** 0.5 and (rate > 0 or not wrong.any())
    share = torch.zeros(K, K).index_put((LABELS, noisy), torch.ones(N), accumulate=True) / (N / K)
    others = ~torch.eye(K, dtype=torch.bool)
    if kind == "symmetric":
        wanted = others * rate / (K - 1)
    elif kind == "pairs":
        wanted = torch.eye(K).roll(1, 1) * rate
    elif kind == "superclass":
        wanted = (SUPERCLASS[:, None] == SUPERCLASS) * others * rate / 3
    else:
        wanted = (torch.arange(K)[:, None] // 5 == torch.arange(K) // 5) * others * rate / 5
    assert ((share - wanted)[others].abs() < 5 * (0.25 / (N / K)) ** 0.5).all()
    assert (share[others][wanted[others] == 0] == 0).all()


def test_pairs_are_those_given() -> None:
    noisy = noisy_labels(LABELS, K, "pairs", 1.0, 0, pairs=[[9, 1], [3, 5], [5, 3]])
    moved = {int(a): int(b) for a, b in zip(LABELS, noisy, strict=True)}
    assert moved[9] == 1 and moved[3] == 5 and moved[5] == 3 and moved[0] == 0


def test_noise_is_a_matter_of_the_sample() -> None:
    """More noise has the wrong labels of less; a long tail has the noise of the whole; another seed has other noise."""
    little, much = (noisy_labels(LABELS, K, "symmetric", rate, 0) for rate in (0.2, 0.4))
    wrong = little != LABELS
    assert torch.equal(little[wrong], much[wrong])
    data = array_dataset(1000, classes=10)
    _, whole = make_subset(data, SubsetSpec(noise="symmetric", rate=0.3))
    part, tail = make_subset(data, SubsetSpec(profile="exponential", imbalance=10, noise="symmetric", rate=0.3))
    assert torch.equal(tail.labels, whole.labels[tail.ids]) and torch.equal(part.labels, tail.labels)
    assert torch.equal(part.images, data.images[tail.ids])
    assert torch.equal(torch.bincount(tail.true_labels), exponential_profile(100, 10, 10)), "the tail is of the true classes"
    _, other = make_subset(data, SubsetSpec(noise="symmetric", rate=0.3, seed=1))
    assert not torch.equal(other.labels, whole.labels)
    assert int(data.labels[0]) == 0 and torch.equal(data.labels, torch.arange(1000) % 10), "the split itself is clean"


def test_the_draw_is_the_same_on_every_machine() -> None:
    """Hashes computed on another day: integer arithmetic, and floats only where they are exact."""
    data = array_dataset(1000, classes=10)
    spec = SubsetSpec(images_per_class=80, profile="exponential", imbalance=20, noise="blocks", rate=0.5, seed=3)
    _, subset = make_subset(data, spec)
    assert subset.sha256 == "602bc0f215f54fe469b56b25d9ce60d8dca9c7a82879b6716f92583efa7964f5"
    file = io.BytesIO()
    subset.write(file)
    saved = np.load(io.BytesIO(file.getvalue()), allow_pickle=False)
    assert np.array_equal(saved["ids"], subset.ids) and np.array_equal(saved["labels"], subset.labels)
    assert "80 to 4 a class" in subset.describe()


def test_nothing_is_drawn_without_a_protocol() -> None:
    data = array_dataset(100)
    same, subset = make_subset(data, SubsetSpec())
    assert same is data and subset is None


def test_noise_that_cannot_be() -> None:
    with pytest.raises(InputError, match="no superclasses"):
        noisy_labels(LABELS, K, "superclass", 0.5, 0)
    with pytest.raises(InputError, match="12 classes cannot be divided into blocks of 5"):
        noisy_labels(LABELS % 12, 12, "blocks", 0.5, 0)
    with pytest.raises(InputError, match=r"\[1, 20\] is no pair of the classes 0\.\.19"):
        noisy_labels(LABELS, K, "pairs", 0.5, 0, pairs=[[1, 20]])


def test_cifar100_of_real_data(real_data: str) -> None:
    from pycls.data.sets.cifar import cifar100

    data = cifar100(real_data, "trainval", download=False)
    _, tail = make_subset(data, SubsetSpec(profile="exponential", imbalance=100))
    assert len(tail.ids) == 10_847
    _, noisy = make_subset(data, SubsetSpec(noise="superclass", rate=0.4))
    assert torch.equal(data.superclass[noisy.labels], data.superclass[noisy.true_labels])
    assert 0.39 < float((noisy.labels != noisy.true_labels).double().mean()) < 0.41
    assert torch.bincount(data.superclass).tolist() == [5] * 20
    # fine labels 4 (beaver) and 55 (otter) are aquatic mammals
    assert int(data.superclass[4]) == int(data.superclass[55]) == 0
