"""ImageNet (ILSVRC 2012) in its folder form.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. What a class is called is looked for in
the files that come with the images; its folder, the WordNet id, is the first word of its name either way.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from pycls.data.dataset import MissingSplit, Split, check_split, resolve_root
from pycls.data.images.image_files import ImageFiles, read_classes
from pycls.data.index.file_index import list_classes
from pycls.data.index.places import path_under
from pycls.data.index.same_images import refuse_same_folders
from pycls.data.sets.image_folder import labelled_images
from pycls.data.subset.per_class import hold_out_per_class
from pycls.errors import InputError
from pycls.ranges import COUNT, NOT_NEGATIVE
from pycls.registry import DATASETS

NAMES = ("LOC_synset_mapping.txt", "synset_words.txt")
META = ("ILSVRC2012_devkit_t12/data/meta.mat", "devkit/data/meta.mat", "meta.mat")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@DATASETS.register("imagenet")
class ImageNet(ImageFiles):
    """ImageNet in folders ``train/<wnid>/`` and ``val/<wnid>/``; ``val`` may be flat if the devkit is there to label it.

    Names are read from ``LOC_synset_mapping.txt`` or ``synset_words.txt``, or the devkit's ``meta.mat``, where there is one.
    The labels of the challenge's test images are not public: the validation images are what one tests on.

    Args:
        root: folder of the data sets.
        split: train, val, trainval or test.
        folder: the folder that holds train and val: a path, or a name under the folder of the data sets.
        im_size: side of an image in a batch, in pixels.
        val_per_class: training images of each class held out as the split val; the validation images are then the split
            test. 0: the validation images are the split val, and there is no test.
        class_order: wnid numbers the classes by their WordNet ids, as usual; devkit by the ids of its meta.mat.
    """

    def __init__(
        self,
        root: str,
        split: Split,
        folder: str = "imagenet",
        im_size: Annotated[int, COUNT] = 224,
        val_per_class: Annotated[int, NOT_NEGATIVE] = 0,
        class_order: Literal["wnid", "devkit"] = "wnid",
    ) -> None:
        check_split(split, "imagenet")
        base = path_under(resolve_root(root), folder, "IMAGENET.FOLDER")
        names = _class_names(base, class_order)
        refuse_same_folders(base, {"train": val_per_class > 0, "val": True})
        if split == "test" and not val_per_class:
            raise MissingSplit("imagenet: the labels of the test images are not public; evaluate on val instead")
        if split == "test" or (split == "val" and not val_per_class):
            paths, labels = _official_val(base, names)
        else:
            paths, labels = labelled_images(base, "train", names, base / "train")
            if val_per_class:
                ids = hold_out_per_class(torch.from_numpy(labels), split, val_per_class).numpy()
                paths, labels = paths[ids], labels[ids]
            elif split == "trainval":
                more_paths, more_labels = _official_val(base, names)
                paths, labels = np.concatenate([paths, more_paths]), np.concatenate([labels, more_labels])
        super().__init__("imagenet", base, paths, labels, list(names.values()), im_size)


def _class_names(base: Path, order: str) -> dict[str, str]:
    """Class folder -> name, in the order of the labels."""
    folders = list_classes(base / "train") or list_classes(base / "val")
    if not folders:
        raise InputError(f"imagenet: no classes in {base / 'train'}; put the images into {base}/train/<wnid>/ and "
                         f"{base}/val/<wnid>/, or name the folder with IMAGENET.FOLDER, DATA.ROOT or $PYCLS_DATA")  # fmt: skip
    listed = next((base / file for file in NAMES if (base / file).is_file()), None)
    words = read_classes(listed) if listed is not None else {}
    meta = _meta_file(base)
    if order == "devkit" or (meta is not None and not words):
        by_id = _read_meta(base)
        words = {wnid: f"{wnid} {name}" for wnid, name in by_id.values()} | words
        if order == "devkit":
            folders = _in_order(folders, [by_id[number][0] for number in sorted(by_id)], base)
    return {folder: words.get(folder, folder) for folder in folders}


def _in_order(folders: list[str], order: list[str], base: Path) -> list[str]:
    unknown = sorted(set(folders) - set(order))
    if unknown:
        raise InputError(f"{base}: meta.mat knows no class {unknown[0]!r}")
    return [wnid for wnid in order if wnid in set(folders)]


def _meta_file(base: Path) -> Path | None:
    return next((base / file for file in META if (base / file).is_file()), None)


def _read_meta(base: Path) -> dict[int, tuple[str, str]]:
    """The devkit's classes: ILSVRC2012_ID -> (wnid, words). Higher nodes of the hierarchy are left out."""
    meta = _meta_file(base)
    if meta is None:
        raise InputError(f"imagenet: the devkit's order and labels need its meta.mat, as {base / META[0]}")
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(f"imagenet: to read {meta}, install scipy") from None
    try:
        synsets: Any = loadmat(str(meta), squeeze_me=True)["synsets"]
        rows = [(int(s["ILSVRC2012_ID"]), str(s["WNID"]), str(s["words"]), int(s["num_children"])) for s in synsets]
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(f"imagenet: {meta} cannot be read: {' '.join(str(error).split())}") from None
    return {number: (wnid, words) for number, wnid, words, children in rows if not children}


def _official_val(base: Path, names: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    if list_classes(base / "val"):
        return labelled_images(base, "val", names, base / "train")
    files = sorted(path.name for path in (base / "val").glob("ILSVRC2012_val_*.JPEG"))
    if not files:
        raise InputError(f"imagenet: no images in {base}/val/<wnid>/, nor ILSVRC2012_val_*.JPEG in {base / 'val'}")
    by_id, meta = _read_meta(base), _meta_file(base)
    assert meta is not None
    truth = meta.with_name(TRUTH)
    try:
        numbers = [int(line) for line in truth.read_text(encoding="utf-8").split()]
    except (OSError, ValueError):
        raise InputError(f"imagenet: {base / 'val'} has no class folders, and {truth} cannot be read to label it") from None
    label_of = {wnid: label for label, wnid in enumerate(names)}
    labels = []
    for file in files:
        number = int(file.removesuffix(".JPEG").rpartition("_")[2])
        if not 1 <= number <= len(numbers) or by_id.get(numbers[number - 1], ("",))[0] not in label_of:
            raise InputError(f"imagenet: {truth} has no known class for {base / 'val' / file}")
        labels.append(label_of[by_id[numbers[number - 1]][0]])
    return np.array([f"val/{file}".encode() for file in files]), np.array(labels, np.int64)
