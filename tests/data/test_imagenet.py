"""ImageNet's folders, names and devkit, in small; the list of files that is kept."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import photograph

from pycls.data.dataset import MissingSplit
from pycls.data.index import file_index
from pycls.data.index.file_index import list_images
from pycls.data.sets.image_folder import ImageFolder
from pycls.data.sets.imagenet import ImageNet
from pycls.errors import InputError

WNIDS = ["n01440764", "n01443537", "n01484850"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PYCLS_CACHE", str(folder))
    return folder


def write_imagenet(root: Path) -> Path:
    base = root / "imagenet"
    for label, wnid in enumerate(WNIDS):
        for part, count in (("train", 6), ("val", 2)):
            (base / part / wnid).mkdir(parents=True)
            for i in range(count):
                photograph(20, 16, label).save(base / part / wnid / f"{wnid}_{i}.JPEG")
    return base


def write_devkit(base: Path) -> None:
    """ILSVRC ids 1..3 are the classes backwards, 4 is a node above them."""
    matlab = pytest.importorskip("scipy.io")
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(i + 1, wnid, f"fish {wnid[-1]}", 0) for i, wnid in enumerate(reversed(WNIDS))] + [(4, "n00000000", "animal", 3)]
    data = base / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    matlab.savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=fields)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n1\n")


def test_folders_and_names(tmp_path: Path) -> None:
    base = write_imagenet(tmp_path)
    data = ImageNet(str(tmp_path), "train")
    assert len(data) == 18 and data.class_names == WNIDS and data.image_size == 224
    assert len(ImageNet(str(tmp_path), "val")) == 6 and len(ImageNet("", "trainval", folder=str(base))) == 24
    with pytest.raises(MissingSplit, match="evaluate on val"):
        ImageNet(str(tmp_path), "test")
    (base / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} fish {i}, swimmer\n" for i, wnid in enumerate(WNIDS)))
    assert ImageNet(str(tmp_path), "val").class_names[1] == "n01443537 fish 1, swimmer"


def test_fifty_a_class_held_out(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    parts = {s: ImageNet(str(tmp_path), s, val_per_class=2) for s in ("train", "val", "trainval", "test")}
    assert {s: len(p) for s, p in parts.items()} == {"train": 12, "val": 6, "trainval": 18, "test": 6}
    assert torch.bincount(parts["val"].labels).tolist() == [2, 2, 2]
    files = {s: {p.describe(i) for i in range(len(p))} for s, p in parts.items()}
    assert files["train"] | files["val"] == files["trainval"] and not files["train"] & files["val"]
    assert all("/val/" in name for name in files["test"])
    with pytest.raises(InputError, match="VAL_PER_CLASS 6 leaves a class without training images: the smallest has 6"):
        ImageNet(str(tmp_path), "train", val_per_class=6)


def test_devkit(tmp_path: Path) -> None:
    base = write_imagenet(tmp_path)
    with pytest.raises(InputError, match=r"need its meta\.mat"):
        ImageNet(str(tmp_path), "train", class_order="devkit")
    write_devkit(base)
    plain, devkit = ImageNet(str(tmp_path), "val"), ImageNet(str(tmp_path), "val", class_order="devkit")
    assert plain.class_names[0] == "n01440764 fish 4" and devkit.class_names == plain.class_names[::-1]
    by_file = {devkit.describe(i): int(devkit.labels[i]) for i in range(6)}
    assert all(by_file[plain.describe(i)] == 2 - int(plain.labels[i]) for i in range(6))
    shutil.rmtree(base / "val")
    (base / "val").mkdir()
    for i in range(1, 5):
        photograph(16, 16).save(base / "val" / f"ILSVRC2012_val_{i:08}.JPEG")
    assert ImageNet(str(tmp_path), "val").labels.tolist() == [0, 2, 1, 2]
    photograph(16, 16).save(base / "val" / "ILSVRC2012_val_00000005.JPEG")
    with pytest.raises(InputError, match=r"no known class for .*00000005"):
        ImageNet(str(tmp_path), "val")


def test_missing_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no classes in .*imagenet/train; put the images into"):
        ImageNet(str(tmp_path), "train")
    base = write_imagenet(tmp_path)
    shutil.rmtree(base / "val" / WNIDS[1])
    with pytest.raises(InputError, match=r"val has no folder for the class 'n01443537' \(1 of 3 classes are missing\)"):
        ImageNet(str(tmp_path), "val")
    (base / "val" / WNIDS[1]).mkdir()
    assert len(ImageNet(str(tmp_path), "val")) == 4
    for file in (base / "train" / WNIDS[2]).iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"train/n01484850 has no images to train on"):
        ImageNet(str(tmp_path), "train")
    (base / "classes.txt").write_text("\n".join([*WNIDS, "n09999999"]))
    with pytest.raises(InputError, match=r"train has no folder for the class 'n09999999'"):
        ImageFolder(str(base), "train", classes="classes.txt")
    (base / "classes.txt").write_text("\n".join(WNIDS[:2]))
    with pytest.raises(InputError, match=r"has the class 'n01484850', which .*classes\.txt has not"):
        ImageFolder(str(base), "train", classes="classes.txt")


def test_the_order_of_classes_is_the_files(tmp_path: Path) -> None:
    base = write_imagenet(tmp_path)
    (base / "classes.txt").write_text("\n".join(f"{wnid} a fish" for wnid in reversed(WNIDS)))
    data = ImageFolder(str(base), "val", classes="classes.txt")
    assert data.class_names[0] == "n01484850 a fish" and "n01484850" in data.describe(0) and int(data.labels[0]) == 0


def test_the_list_of_files_is_kept_until_a_folder_changes(tmp_path: Path, cache: Path, monkeypatch) -> None:
    base = write_imagenet(tmp_path)
    first = list_images(base, "train", WNIDS)
    assert not list(cache.iterdir()), "a small tree is not worth it"
    monkeypatch.setattr(file_index, "KEPT_FROM", 5)
    list_images(base, "train", WNIDS)
    assert not list(cache.iterdir()), "it has just been written to"
    for wnid in WNIDS:
        os.utime(base / "train" / wnid, (1e9, 1e9))
    list_images(base, "train", WNIDS)
    (kept,) = cache.iterdir()

    def no_listing(folder: object) -> None:
        raise AssertionError(folder)

    with monkeypatch.context() as patch:
        patch.setattr(file_index.os, "listdir", no_listing)
        again = list_images(base, "train", WNIDS)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    photograph(8, 8).save(base / "train" / WNIDS[0] / "new.jpg")
    assert len(list_images(base, "train", WNIDS)[0]) == 19
    os.utime(base / "train" / WNIDS[0], (1e9, 1e9))
    kept.write_bytes(b"damaged")
    assert len(list_images(base, "train", WNIDS)[0]) == 19


@pytest.mark.slow
def test_a_second_start_on_imagenet_takes_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,281,000 files in 1,000 folders, which are only said to be there."""
    folders = [f"n{number:08}" for number in range(1000)]
    for folder in folders:
        (tmp_path / "imagenet" / "train" / folder).mkdir(parents=True)
        os.utime(tmp_path / "imagenet" / "train" / folder, (1e9, 1e9))
    with monkeypatch.context() as patch:
        patch.setattr(file_index.os, "listdir", lambda folder: [f"{Path(folder).name}_{i}.JPEG" for i in range(1281)])
        first = ImageNet(str(tmp_path), "train")
    start = time.perf_counter()
    second = ImageNet(str(tmp_path), "train")
    took = time.perf_counter() - start
    assert len(second) == 1_281_000 and second.describe(1_280_999) == first.describe(1_280_999)
    assert took <= 2.0, took
