"""Photographs that a list names, ``path label`` a line or CSV."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from pycls.data.dataset import MissingSplit, Split, check_split, resolve_root, select_split
from pycls.data.images.image_files import ImageFiles, check_files, read_classes
from pycls.data.index.lists import ImageList, class_names, numbered, read_list
from pycls.data.index.places import local_path, path_under
from pycls.data.index.same_images import SplitImages, refuse_same_images
from pycls.errors import InputError
from pycls.ranges import COUNT, NOT_NEGATIVE
from pycls.registry import DATASETS


@dataclass(frozen=True)
class Lists:
    """Where the lists of a data set are.

    Attributes:
        files: train, val, test -> list; those that there are.
        folder: what their paths are relative to.
        classes: a file of class names, or None.
        columns: headers of the columns of paths and of labels, in CSV.
        options: train, val, test -> the full name of the option that says where the list is.
        folder_option: the full name of the option that says where the folder is.
    """

    files: dict[str, Path]
    folder: Path
    classes: Path | None = None
    columns: tuple[str, str] = ("path", "label")
    options: Mapping[str, str] = field(default_factory=dict)
    folder_option: str = "FOLDER"


class ListedImages(ImageFiles):
    """Images of which lists say where they are and of what class. Classes come from the list train, where there is one.

    Args:
        name: of the data set.
        lists: where its lists are.
        split: train, val, trainval or test.
        im_size: side of an image in a batch, in pixels.
        val_size: training images held out where there is no list val, each class in its share; 0 for a tenth.
    """

    def __init__(self, name: str, lists: Lists, split: str, im_size: int, val_size: int = 0) -> None:
        check_split(split, name)
        found = _read(lists, _needed(name, lists.files, split))
        names = _names(found, lists.classes)
        paths, labels = _part(found, split, names, val_size, lists)
        own = found[split if split in found else "train"]
        check_files(lists.folder, paths, own.name, lists.folder_option)
        super().__init__(f"{name} {own.source}", lists.folder, paths, labels, names, im_size)


@DATASETS.register("image_list")
def image_list(
    root: str,
    split: Split,
    train: str = "",
    val: str = "",
    test: str = "",
    folder: str = "",
    im_size: Annotated[int, COUNT] = 224,
    val_size: Annotated[int, NOT_NEGATIVE] = 0,
    classes: str = "",
    path_column: str = "path",
    label_column: str = "label",
) -> ListedImages:
    """Images that lists name, a path and a label on each line; one that ends in .csv or .tsv has a header.

    Labels are numbers from 0 on, in CSV also names. Without a list train the others can be evaluated. Lists that share images,
    an image with two labels, and one that is twice in a list that is tested on or held out from, are refused.

    Args:
        root: folder of the data sets.
        split: train, val, trainval or test.
        train: the list of training images: a path, or a name under the folder of the data sets.
        val: the list of validation images; without it a part of train is held out.
        test: the list of test images.
        folder: the folder that the paths in the lists are relative to: a path, or a name under the folder of the data sets.
        im_size: side of an image in a batch, in pixels.
        val_size: training images held out where there is no list val, each class in its share; 0 for a tenth.
        classes: a file with a class on each line, in the order of the labels: a word, and perhaps its name after it; empty to
            name classes by their folders.
        path_column: header of the column of paths, in CSV.
        label_column: header of the column of labels, in CSV.
    """
    top, given = resolve_root(root), {"train": train, "val": val, "test": test}
    options = {part: f"IMAGE_LIST.{part.upper()}" for part in given}
    files = {part: local_path(top, name, options[part]) for part, name in given.items() if name}
    words = path_under(top, classes, "IMAGE_LIST.CLASSES") if classes else None
    images = path_under(top, folder, "IMAGE_LIST.FOLDER")
    lists = Lists(files, images, words, (path_column, label_column), options, "IMAGE_LIST.FOLDER")
    return ListedImages("image_list", lists, split, im_size, val_size)


def _needed(name: str, files: dict[str, Path], split: str) -> list[str]:
    """The lists that a split is made of; train's, which has the classes; and val's beside test's, to compare them."""
    section = name.upper()
    if split == "test" and "test" not in files:
        raise MissingSplit(f"{name}: there is no list {section}.TEST; evaluate on val instead")
    if split != "test" and "train" not in files and not (split == "val" and "val" in files):
        raise InputError(f"{name}: name the list of training images with {section}.TRAIN")
    own = {"train": ["train"], "val": ["val"], "trainval": ["train", "val"], "test": ["test"]}[split]
    alone = split in ("val", "test") and split in files  # the training list need not be there
    if split == "test" and "val" in files and files["val"].is_file():
        own.append("val")
    return [part for part in files if part in own or (part == "train" and (files[part].is_file() or not alone))]


def _read(lists: Lists, needed: list[str]) -> dict[str, ImageList]:
    """Train's first: where its labels are names, numbers in the others are names too."""
    found: dict[str, ImageList] = {}
    for part in sorted(needed, key=("train", "val", "test").index):
        named = "train" in found and found["train"].named
        found[part] = read_list(lists.files[part], *lists.columns, lists.options.get(part, ""), named)
    return found


def _names(lists: dict[str, ImageList], classes: Path | None) -> list[str]:
    first = lists.get("train") or next(iter(lists.values()))
    if classes is None:
        return class_names(first)
    words = read_classes(classes)
    return list(words) if first.named else list(words.values())


def _part(
    found: dict[str, ImageList], split: str, names: list[str], val_size: int, lists: Lists
) -> tuple[np.ndarray, np.ndarray]:
    training, has_val = found["train"].name if "train" in found else "the file of classes", "val" in lists.files
    labels = {part: numbered(own, names, training) for part, own in found.items()}
    refuse_same_images([SplitImages(own.name, lists.folder, own.paths, own.labels, part != "train" or not has_val, own.where)
                        for part, own in found.items()])  # fmt: skip
    if split in ("val", "test") and split in found:
        return found[split].paths, labels[split]
    if split == "trainval" and has_val:
        return (np.concatenate([found[part].paths for part in ("train", "val")]),
                np.concatenate([labels[part] for part in ("train", "val")]))  # fmt: skip
    paths, own = found["train"].paths, labels["train"]
    if has_val:
        return paths, own
    ids = select_split(torch.from_numpy(own), split, val_size or max(1, len(own) // 10))
    return (paths, own) if ids is None else (paths[ids.numpy()], own[ids.numpy()])
