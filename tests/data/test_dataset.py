"""Splits, counts, roots, and what a data set checks about itself."""

from pathlib import Path

import pytest
import torch
from data_makers import array_dataset

from pycls.data.dataset import absent_classes, check_num_classes, class_counts, held_out, resolve_root
from pycls.errors import InputError
from pycls.registry import DATASETS

HELD_OUT = [4, 14, 15, 17, 23, 28, 33, 38]


def test_held_out_takes_each_class_in_its_share():
    labels = torch.tensor([0] * 700 + [1] * 250 + [2] * 47 + [3] * 3)[torch.randperm(1000)]
    kept, out = held_out(labels, 100)
    assert torch.cat([kept, out]).sort().values.tolist() == list(range(1000))
    assert kept.tolist() == sorted(kept.tolist()) and out.tolist() == sorted(out.tolist())
    assert torch.bincount(labels[out], minlength=4).tolist() == [70, 25, 5, 0]  # 4.7 rounds up before 0.3 does


@pytest.mark.parametrize("size", [1, 7, 99, 999])
def test_held_out_has_exactly_the_size_asked_for(size):
    labels = torch.arange(1000) % 7
    kept, out = held_out(labels, size)
    assert len(out) == size and len(kept) == 1000 - size


def test_held_out_never_changes():
    _, out = held_out(torch.arange(40) % 4, 8)
    assert out.tolist() == HELD_OUT
    assert held_out(torch.arange(40) % 4, 8, salt=1)[1].tolist() != out.tolist()


@pytest.mark.parametrize("size", [0, 10, 11])
def test_held_out_leaves_something_on_both_sides(size):
    with pytest.raises(InputError, match=r"1\.\.9 of 10"):
        held_out(torch.zeros(10, dtype=torch.int64), size)


def test_class_counts():
    counts = class_counts(torch.tensor([0, 2, 2, -1]), 4)
    assert counts.tolist() == [1, 0, 2, 0] and counts.dtype == torch.int64
    with pytest.raises(InputError, match="labels up to 2: it must be at least 3"):
        class_counts(torch.tensor([0, 2]), 2)


def test_too_few_classes():
    check_num_classes(torch.tensor([0, 9]), 10, "mnist")
    with pytest.raises(InputError, match="NUM_CLASSES is 5, but mnist has labels up to 9: it must be at least 10"):
        check_num_classes(torch.tensor([0, 9]), 5, "mnist")


def test_root(monkeypatch):
    monkeypatch.delenv("PYCLS_DATA", raising=False)
    assert resolve_root("") == Path("data")
    monkeypatch.setenv("PYCLS_DATA", "/sets")
    assert resolve_root("") == Path("/sets")
    assert resolve_root("/mine") == Path("/mine")
    assert resolve_root("~/x") == Path.home() / "x"


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"images": torch.zeros(10, 1, 8, 7, dtype=torch.uint8)}, r"uint8 \[10, 1, 8, 8\]"),
        ({"images": torch.zeros(10, 1, 8, 8)}, "float32"),
        ({"labels": torch.zeros(10)}, "int64"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "no images"),
        ({"labels": torch.full((10,), 10)}, "labels up to 10"),
        ({"mean": (0.1, 0.2)}, "mean and std"),
    ],
)
def test_a_data_set_that_contradicts_itself(facts, message):
    with pytest.raises(ValueError, match=message):
        array_dataset(10, **facts)


def test_digits():
    digits = DATASETS.get("digits")
    parts = {split: digits("", split) for split in ("train", "val", "trainval", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 1257,
        "val": 180,
        "trainval": 1437,
        "test": 360,
    }
    assert all(part.images.shape[1:] == (1, 8, 8) and part.num_classes == 10 for part in parts.values())
    images = {split: {image.numpy().tobytes() for image in part.images} for split, part in parts.items()}
    assert not images["test"] & images["trainval"]
    assert images["train"] | images["val"] == images["trainval"]
    pixels = parts["train"].images / 255
    assert int(parts["train"].images.max()) == 255
    assert float(pixels.mean()) == pytest.approx(parts["train"].mean[0], abs=0.005)
    assert float(pixels.std()) == pytest.approx(parts["train"].std[0], abs=0.005)
    # Each class in its share: between 174 and 183 images of a digit in all.
    assert min(torch.bincount(parts["test"].labels)) >= 35
    with pytest.raises(InputError, match="trainval"):
        digits("", "validation")


def test_every_built_in_set_is_registered():
    assert {"digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "image_folder"} <= set(DATASETS.names())


def test_classes_without_images_are_named() -> None:
    assert absent_classes(torch.tensor([3, 1]), ["a", "b"]) == ""
    counts = class_counts(torch.tensor([1, 2, 3]), 4)
    assert absent_classes(counts, list("0123")) == "1 of 4 classes has no training images: 0; labels count from 0"
    counts = class_counts(torch.tensor([1, 5, 10]), 14)
    assert absent_classes(counts, ["cat", "dog", "2", "owl", "eel"]) == (
        "11 of 14 classes have no training images: 0 (cat), 2, 3 (owl), 4 (eel), 6 and 6 more; labels count from 0"
    )
