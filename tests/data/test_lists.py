"""List files, CSV, and the sets that are published as lists."""

from pathlib import Path

import numpy as np
import pytest
from bad_files import photograph

from pycls.data.dataset import MissingSplit, remap_labels
from pycls.data.images import image_files
from pycls.data.index.lists import class_names, read_list
from pycls.data.loader import EvalLoader
from pycls.errors import InputError
from pycls.registry import DATASETS


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 images in three folders, and a list of them whose labels are not in the folders' order."""
    lines = []
    for i in range(30):
        name = ("bee", "ant", "cat")[i % 3]
        path = tmp_path / "photos" / "train" / name / f"{i:02} x.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(12 + i, 14, i).save(path)
        lines.append(f"train/{name}/{i:02} x.jpg {i % 3}")
    (tmp_path / "train.txt").write_text("\n".join(lines[:24]) + "\n")
    (tmp_path / "val.txt").write_text("\n".join(lines[24:]))
    return tmp_path


def load(root: Path, split: str = "train", **options: object):
    options = {"train": "train.txt", "folder": "photos", "im_size": 8, **options}
    return DATASETS.get("image_list")(str(root), split, **options)


def test_lists(photos: Path) -> None:
    data = load(photos, val="val.txt")
    assert len(data) == 24 and data.class_names == ["bee", "ant", "cat"] and data.labels[:4].tolist() == [0, 1, 2, 0]
    assert data.describe(1) == str(photos / "photos/train/ant/01 x.jpg") and data.load(1).shape == (14, 13, 3)
    assert len(load(photos, "val", val="val.txt")) == 6 and len(load(photos, "trainval", val=str(photos / "val.txt"))) == 30
    assert len(load(photos, "test", test="val.txt")) == 6
    with pytest.raises(MissingSplit):
        load(photos, "test")
    held = [load(photos, split, val_size=6) for split in ("train", "val", "trainval")]
    files = [{part.describe(i) for i in range(len(part))} for part in held]
    assert [len(f) for f in files] == [18, 6, 24] and files[0] | files[1] == files[2]
    alone = DATASETS.get("image_list")(str(photos), "val", val="val.txt", folder="photos", im_size=8)
    assert len(alone) == 6 and alone.num_classes == 3
    assert sum(len(batch.ids) for batch in EvalLoader(data, 10)) == 24


def test_csv(photos: Path) -> None:
    rows = [line.rsplit(" ", 1) for line in (photos / "train.txt").read_text().splitlines()]
    names = ["honey, bee", "ant", "cat"]
    body = "\n".join(f'9,"{names[int(label)]}",{path}' for path, label in rows)
    (photos / "train.csv").write_text(f"id,species,file\n{body}\n")
    columns = {"path_column": "file", "label_column": "species"}
    data = load(photos, "trainval", train="train.csv", val_size=1, **columns)
    assert data.class_names == ["ant", "cat", "honey, bee"] and data.labels[:3].tolist() == [2, 0, 1]
    (photos / "val.csv").write_text("id,species,file\n1,dog,train/ant/01 x.jpg\n")
    with pytest.raises(InputError, match=r"val\.csv:2: the label 'dog' is none of the 3 classes of .*train\.csv"):
        load(photos, "val", train="train.csv", val="val.csv", **columns)
    with pytest.raises(InputError, match=r"train\.csv:1: there is no column 'path', only id, species, file"):
        load(photos, train="train.csv")
    (photos / "train.tsv").write_text("path\tlabel\ntrain/ant/01 x.jpg\t4\ntrain/bee/00 x.jpg\t0\n")
    assert load(photos, "trainval", train="train.tsv", val_size=1).labels.tolist() == [4, 0]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"IMAGE_LIST\.TRAIN: .*train\.txt: the list is empty"),
        ("a.jpg 0\nb.jpg\n", r"train\.txt:2: expected a path and a label"),
        ("a.jpg 0\n\nb.jpg\n", r"train\.txt:3: expected a path and a label"),
        ("a.jpg 0\nb.jpg one\n", r"train\.txt:2: the label 'one' is no whole number"),
        ("a.jpg 0\nb.jpg -1\n", r"train\.txt:2: the label '-1' is negative"),
        ("train/ant/01 x.jpg 0\nnowhere.jpg 1\n", r"train\.txt: there is no file .*nowhere\.jpg; 1 of 2 files"),
        ("a.jpg 0\nb.jpg 1\n", r"train\.txt: there is no file .*a\.jpg; all of 2 files .* relative to IMAGE_LIST\.FOLDER"),
    ],
)
def test_lists_that_cannot_be(photos: Path, text: str, message: str) -> None:
    (photos / "train.txt").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load(photos, "train", val="val.txt")
    assert "\n" not in str(error.value)


def test_labels_out_of_range_and_images_in_two_lists(photos: Path) -> None:
    (photos / "more.txt").write_text("train/cat/29 x.jpg 2\ntrain/cat/26 x.jpg 3\n")
    with pytest.raises(InputError, match=r"more\.txt:2: the label '3' is none of the 3 classes of .*train\.txt"):
        load(photos, "test", test="more.txt")
    (photos / "more.txt").write_text("train/cat/29 x.jpg 2\ntrain/cat/02 x.jpg 2\n")
    with pytest.raises(InputError, match=r"more\.txt and .*train\.txt share 1 images, such as train/cat/02 x\.jpg"):
        load(photos, "val", val="more.txt")
    with pytest.raises(InputError, match=r"cannot be read: No such file"):
        load(photos, train="trian.txt")
    with pytest.raises(InputError, match=r"name the list of training images with IMAGE_LIST\.TRAIN"):
        load(photos, train="")


def test_classes_by_a_file(photos: Path) -> None:
    (photos / "classes.txt").write_text("b a honey bee\na an ant\nc a cat\nd a dog\n")
    assert load(photos, classes="classes.txt").class_names == ["b a honey bee", "a an ant", "c a cat", "d a dog"]
    (photos / "classes.txt").write_text("b\nb\n")
    with pytest.raises(InputError, match="names b twice"):
        load(photos, classes="classes.txt")


def test_class_names_of_folders(tmp_path: Path) -> None:
    def names(*lines: str) -> list[str]:
        (tmp_path / "l.txt").write_text("\n".join(lines))
        return class_names(read_list(tmp_path / "l.txt"))

    assert names("a/x/1.jpg 1", "a/y/1.jpg 0") == ["y", "x"]
    assert names("a/out/1.jpg 0", "b/out/1.jpg 1") == ["a/out", "b/out"]
    assert names("a/1.jpg 0", "a/2.jpg 1") == ["0", "1"]
    assert names("a/1.jpg 0", "c/2.jpg 2") == ["0", "1", "2"], "a class without an image has no folder"
    assert names("a/1.jpg 0", "b/2.jpg 1", "b/3.jpg 0") == ["0", "1"]


def test_official_lists(real_data: str) -> None:
    folder = Path(real_data) / "imagenet_lt"
    if not folder.is_dir():
        pytest.skip("PYCLS_TEST_DATA holds no imagenet_lt")
    for file, total, classes, each in (("ImageNet_LT_val.txt", 20_000, 1000, 20), ("ImageNet_LT_test.txt", 50_000, 1000, 50),
                                       ("iNaturalist18_val.txt", 24_426, 8142, None)):  # fmt: skip
        found = read_list(folder / file)
        counts = np.bincount(found.labels)
        assert (len(found.paths), len(counts)) == (total, classes) and (counts > 0).all()
        assert each is None or (counts == each).all()
    assert class_names(read_list(folder / "ImageNet_LT_test.txt"))[:2] == ["n01440764", "n01443537"]
    assert class_names(found)[-1] == "8141"
    with pytest.raises(InputError, match=r"imagenet_lt .*ImageNet_LT_test\.txt|there is no file .*ILSVRC2012_val_"):
        DATASETS.get("imagenet_lt")(real_data, "test")


def test_val_and_test_of_imagenet_lt_are_not_confused(tmp_path: Path) -> None:
    lists = tmp_path / "imagenet_lt"
    lists.mkdir()
    for part, path in (("train", "train/n1/a.jpg"), ("val", "val/n1/c.jpg"), ("test", "train/n1/b.jpg")):
        (lists / f"ImageNet_LT_{part}.txt").write_text(f"{path} 0\n")
    for part in ("val", "test"):
        with pytest.raises(InputError, match=f"ImageNet_LT_{part}.txt is not the {part} list"):
            DATASETS.get("imagenet_lt")(str(tmp_path), part)


@pytest.mark.parametrize(
    "name, prefix, splits",
    [("imagenet_lt", "ImageNet_LT", 3), ("places_lt", "Places_LT", 3), ("inaturalist2018", "iNaturalist18", 2),
     ("inaturalist2019", "iNaturalist19", 2)],
)  # fmt: skip
def test_named_lists(tmp_path: Path, name: str, prefix: str, splits: int) -> None:
    folder = {"imagenet_lt": "imagenet", "places_lt": "places"}.get(name, name)
    (tmp_path / name).mkdir()
    for k, (part, where) in enumerate((("train", "train"), ("val", "train"), ("test", "val"))[:splits]):
        for label in range(2):
            path = tmp_path / folder / where / f"n{label}" / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph(16, 16, k).save(path)
        lines = "".join(f"{where}/n{label}/{k}.jpg {label}\n" for label in range(2))
        (tmp_path / name / f"{prefix}_{part}.txt").write_text(lines)
    for k, part in enumerate(("train", "val", "test")[:splits]):
        data = DATASETS.get(name)(str(tmp_path), part)
        assert len(data) == 2 and data.class_names == ["n0", "n1"] and data.describe(1).endswith(f"n1/{k}.jpg")
    if splits == 2:
        with pytest.raises(MissingSplit):
            DATASETS.get(name)(str(tmp_path), "test")


def test_a_long_list_is_looked_through_in_part(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "CHECKED_FILES", 4)
    with (photos / "train.txt").open("a") as file:
        file.write("nowhere.jpg 0\n")
    with pytest.raises(InputError, match=r"nowhere\.jpg; 1 of 4 files"):
        load(photos, val="val.txt")


def test_classes_are_those_trained_on(photos: Path) -> None:
    data = load(photos, val="val.txt")
    data, said = remap_labels(data, ["zebra", "cat", "bee", "ant"], "w.pth")
    assert data.labels[:3].tolist() == [2, 3, 1] and data.class_names == ["zebra", "cat", "bee", "ant"]
    assert "its 3 classes are found by their names among the 4 of w.pth" in said
    other = load(photos, val="val.txt")
    other.labels[0] = -1
    with pytest.raises(InputError, match=r"has the class 'ant', which is not one of the 2 classes of w\.pth"):
        remap_labels(other, ["bee", "cat"], "w.pth")
    with pytest.raises(InputError, match=r"has the class 'cat'.* or not the only one of that name"):
        remap_labels(other, ["bee", "cat", "ant", "cat"], "w.pth")
    with pytest.raises(InputError, match=r"none of its 3 classes \(bee, ant, cat\) .* \(0, 1, 2\); TEST\.MATCH_CLASSES pos"):
        remap_labels(other, ["0", "1", "2"], "w.pth")
    with pytest.raises(InputError, match=r"\('bee' and '_BEE' differ only in how they are written\)"):
        remap_labels(other, ["_BEE", "1", "2"], "w.pth")
    other.class_names = ["n00000001 bee", "n00000002", "n00000003 cat, feline"]
    other, said = remap_labels(other, ["n00000003", "n00000002 ant", "n00000001"], "w.pth")
    assert other.labels[:3].tolist() == [-1, 1, 0] and "are those of w.pth in another order" in said
    with pytest.raises(InputError, match=r"has 3 classes, w\.pth only 2"):
        remap_labels(other, ["x", "y"], "w.pth", by_position=True)
    other, said = remap_labels(other, ["x", "y", "z"], "w.pth", by_position=True)
    assert other.labels[:3].tolist() == [-1, 1, 0] and other.class_names == ["x", "y", "z"] and "by position" in said
