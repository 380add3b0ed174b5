"""Mixup and CutMix."""

import pytest
import torch

from pycls.data.augment.mix import mix

IMAGES = torch.rand(8, 3, 10, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8)


def partner_images(labels_b):
    return IMAGES[labels_b]  # label i is that of image i


@pytest.mark.parametrize("step", range(20))
def test_mixup(step):
    images, (a, b, lam) = mix(IMAGES, LABELS, 1, step, 0.4, 0.0)
    assert torch.equal(a, LABELS) and sorted(b.tolist()) == LABELS.tolist() and 0 <= lam <= 1
    torch.testing.assert_close(images, lam * IMAGES + (1 - lam) * partner_images(b))


@pytest.mark.parametrize("step", range(20))
def test_cutmix(step):
    kept = IMAGES.clone()
    images, (_, b, lam) = mix(IMAGES, LABELS, 1, step, 0.0, 1.0)
    assert torch.equal(IMAGES, kept)
    others = partner_images(b)
    from_other = (images != IMAGES).any(0).any(0)
    rows, columns = from_other.any(1).nonzero()[:, 0], from_other.any(0).nonzero()[:, 0]
    if len(rows):
        box = (slice(None), slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert torch.equal(images[box], others[box]) and bool(from_other[box[2:]].all())
    assert lam == pytest.approx(1 - int(from_other.sum()) / 120)


def test_a_pure_function_of_seed_step_and_rank():
    def run(*arguments, **rank):
        images, (_, b, lam) = mix(IMAGES, LABELS, *arguments, 0.5, 0.0, **rank)
        return images.sum().item(), b.tolist(), lam

    assert run(1, 5) == run(1, 5)
    assert run(1, 5) != run(1, 6) and run(1, 5) != run(2, 5)
    assert run(1, 5)[2] == run(1, 5, rank=1)[2] and run(1, 5)[1] != run(1, 5, rank=1)[1]


def test_the_ratio_has_its_distribution():
    ratios = torch.tensor([mix(IMAGES[:2], LABELS[:2], 0, step, 0.5, 0.0)[1][2] for step in range(2000)])
    assert float(ratios.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(ratios.var()) == pytest.approx(1 / 8, abs=0.01)  # 1 / (4 (2 alpha + 1))


def test_either_is_chosen_half_of_the_time():
    cut = 0
    for step in range(400):
        images, (_, b, lam) = mix(IMAGES, LABELS, 0, step, 1.0, 1.0)
        cut += not torch.allclose(images, lam * IMAGES + (1 - lam) * partner_images(b))
    assert 160 < cut < 240


def test_neither():
    images, (a, b, lam) = mix(IMAGES, LABELS, 0, 0, 0.0, 0.0)
    assert images is IMAGES and a is b and lam == 1
    with pytest.raises(ValueError, match="0 or more"):
        mix(IMAGES, LABELS, 0, 0, -1.0, 0.0)
