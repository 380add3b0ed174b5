"""A fixed number of images of each class."""

import torch

from pycls.data.sets.digits import digits
from pycls.data.sets.image_folder import ImageFolder
from pycls.data.subset.per_class import per_class, subset


def test_each_class_gives_its_number_always_the_same():
    labels = torch.randint(0, 7, (500,), generator=torch.Generator().manual_seed(0))
    ten, twenty = per_class(labels, 10), per_class(labels, 20)
    assert torch.equal(torch.bincount(labels[ten]), torch.full((7,), 10))
    assert set(ten.tolist()) <= set(twenty.tolist()), "a smaller subset is part of a larger one"
    assert torch.equal(ten, ten.sort().values) and torch.equal(ten, per_class(labels, 10))


def test_a_class_with_fewer_gives_all():
    assert per_class(torch.tensor([0, 1, 1, 1]), 2).tolist()[0] == 0


def test_subset_of_arrays_keeps_images_with_labels():
    whole = digits(root="", split="train")
    ids = per_class(whole.labels, 3)
    part = subset(whole, ids)
    assert torch.equal(part.images, whole.images[ids]) and torch.equal(part.labels, whole.labels[ids])


def test_subset_of_files(tmp_path):
    from PIL import Image

    for name, grey in (("a", 10), ("b", 200)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (grey + i, 0, 0)).save(tmp_path / "train" / name / f"{i}.png")
    whole = ImageFolder(root=str(tmp_path), split="trainval")
    ids = torch.tensor([1, 6])
    part = subset(whole, ids)
    assert len(part) == 2 and part.labels.tolist() == [0, 1]
    assert (part.load(1) == whole.load(6)).all() and part.describe(1) == whole.describe(6)
