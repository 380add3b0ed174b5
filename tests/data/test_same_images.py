"""An image in two parts, or twice in one, by whatever name: refused, in lists and in folders."""

import os
from pathlib import Path

import pytest

from pycls.data.index import same_images
from pycls.data.index.lists import read_list
from pycls.data.sets.image_folder import ImageFolder
from pycls.data.sets.imagenet import ImageNet
from pycls.errors import InputError
from pycls.registry import DATASETS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve files in ``photos``, and ways to one of them: a link of each kind, and by a link of its folder."""
    for k in range(12):
        (tmp_path / "photos" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / f"{k}.jpg").write_bytes(b"%d" % k)
    (tmp_path / "photos" / "soft.jpg").symlink_to("0.jpg")
    os.link(tmp_path / "photos" / "0.jpg", tmp_path / "photos" / "hard.jpg")
    (tmp_path / "photos" / "again").symlink_to(".")
    return tmp_path


ALIASES = ["0.jpg", "./0.jpg", "x/../0.jpg", ".//x/.././0.jpg", "again/0.jpg", "{root}/photos/0.jpg", "soft.jpg", "hard.jpg"]


def load(root: Path, split: str, **lists: str):
    files = {}
    for part, text in lists.items():
        (root / f"{part}.txt").write_text(text.format(root=root))
        files[part] = f"{part}.txt"
    return DATASETS.get("image_list")(str(root), split, folder="photos", **files)


def lines(*numbers: int) -> str:
    return "".join(f"{k}.jpg {k % 2}\n" for k in numbers)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("alias", ALIASES)
def test_lists(root: Path, alias: str, many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if many:  # then links to single files are not followed
        monkeypatch.setattr(same_images, "FOLLOWED_FILES", 1)
        if alias in ("soft.jpg", "hard.jpg"):
            return
    train = lines(*range(8))
    for split in ("train", "val", "trainval"):
        with pytest.raises(InputError, match=r"train\.txt:1 and (.*:9 are the same image, .*: a part that is|line 9 give)"):
            load(root, split, train=f"{train}{alias} 0\n")  # val is held out of it
        with pytest.raises(InputError, match=r"TRAIN: .*train\.txt:1 and .*9 give the .*image.* two labels, '0' and '1'"):
            load(root, split, train=f"{train}{alias} 1\n", val=lines(8, 9))
    assert len(load(root, "train", train=f"{train}{alias} 0\n", val=lines(8, 9))) == 9, "it is only seen more often"
    with pytest.raises(InputError, match=r"VAL: .*val\.txt:1 and .*VAL: .*val\.txt:3 are the same image"):
        load(root, "val", train=lines(4, 5, 6), val=f"{lines(0, 1)}{alias} 0\n")
    with pytest.raises(InputError, match=r"VAL: .*val\.txt and .*TRAIN: .*train\.txt share 1 images, such as "):
        load(root, "val", train=train, val=f"{alias} 0\n8.jpg 0\n")
    with pytest.raises(InputError, match=r"TEST: .*test\.txt and .*VAL: .*val\.txt share 1 images"):
        load(root, "test", train=lines(4, 5), val=lines(0, 8), test=f"{alias} 0\n9.jpg 1\n")


def test_one_list_for_two_parts(root: Path) -> None:
    (root / "link.txt").symlink_to("train.txt")
    for name in ("train.txt", "link.txt"):
        (root / "train.txt").write_text(lines(0, 1, 2, 3))
        with pytest.raises(InputError, match="share 4 images"):
            DATASETS.get("image_list")(str(root), "val", folder="photos", train="train.txt", val=name)


@pytest.mark.parametrize("alias", ["a.jpg", "./a.jpg", "x/../a.jpg"])
def test_a_list_alone_with_two_labels(tmp_path: Path, alias: str) -> None:
    (tmp_path / "l.txt").write_text(f"a.jpg 0\n\nb.jpg 1\n{alias} 1\n")
    with pytest.raises(InputError, match=r"l\.txt:1 and line 4 give the image .*a\.jpg two labels, '0' and '1'"):
        read_list(tmp_path / "l.txt")
    (tmp_path / "l.csv").write_text(f"path,label\na.jpg,cat\n{alias},dog\n")
    with pytest.raises(InputError, match=r"l\.csv:2 and line 3 give the image .*a\.jpg two labels, 'cat' and 'dog'"):
        read_list(tmp_path / "l.csv")


def tree(base: Path, *parts: str) -> Path:
    for part in parts:
        for name in ("ant", "bee"):
            (base / part / name).mkdir(parents=True)
            for k in range(10):
                (base / part / name / f"{k}.jpg").write_bytes(b"")
    return base


def folder(base: Path, split: str = "val") -> ImageFolder:
    return ImageFolder(str(base), split)


@pytest.mark.parametrize("split", ["train", "val", "trainval", "test"])
def test_folders(tmp_path: Path, split: str) -> None:
    whole = tree(tmp_path / "whole", "train", "val", "test")
    assert len(folder(whole, split)) == (40 if split == "trainval" else 20)
    (whole / "val" / "ant" / "new.jpg").symlink_to(whole / "train" / "ant" / "3.jpg")
    with pytest.raises(InputError, match=r"whole/val and .*train share 1 images, such as val/ant/new\.jpg, there train/ant/3"):
        folder(whole, split)
    part = tree(tmp_path / "part", "train", "test")
    (part / "val").symlink_to("train")
    with pytest.raises(InputError, match=r"part/train/ant and .*part/val/ant are the same folder"):
        folder(part, split)


def test_folders_of_classes(tmp_path: Path) -> None:
    base = tree(tmp_path / "base", "train", "val")
    (base / "train" / "cat").symlink_to("bee")
    with pytest.raises(InputError, match=r"train/bee and .*train/cat are the same folder"):
        folder(base)
    (base / "train" / "cat").unlink()
    os.link(base / "train" / "bee" / "1.jpg", base / "train" / "ant" / "b1.jpg")
    with pytest.raises(InputError, match=r"train/ant/b1\.jpg and .*train/bee/1\.jpg give the same image, .*'ant' and 'bee'"):
        folder(base)
    (base / "train" / "ant" / "b1.jpg").unlink()
    os.link(base / "train" / "bee" / "1.jpg", base / "train" / "bee" / "b1.jpg")
    assert len(folder(base, "train")) == 21
    for path in sorted((base / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (base / "val").rmdir()
    with pytest.raises(InputError, match=r"bee/1\.jpg and .*bee/b1\.jpg are the same image.* held out"):
        folder(base)
    assert len(ImageNet(str(tmp_path), "train", folder=str(tree(tmp_path / "net", "train", "val")))) == 20
    with pytest.raises(InputError, match="are the same image"):
        ImageNet(str(tmp_path), "train", folder=str(base), val_per_class=2)
