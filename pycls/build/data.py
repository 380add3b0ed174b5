"""From the options to data sets, subsets of them, and loaders."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from pycls import class_names, config
from pycls.build.errors import user_errors
from pycls.config.options import CORE
from pycls.data.augment import names
from pycls.data.augment.augmentation import Augmentation
from pycls.data.dataset import (
    ArrayDataset,
    FileDataset,
    MissingSplit,
    check_num_classes,
    remap_labels,
    resolve_root,
)
from pycls.data.loader import EvalLoader, TrainLoader
from pycls.data.sampler import make_sampler
from pycls.data.sets.synthetic import shape_of, synthetic
from pycls.data.sources.unreadable import Unreadable, read_record
from pycls.data.subset.subset_spec import Subset, SubsetSpec, make_subset
from pycls.engine.tta import TestTimeAugmentation
from pycls.errors import InputError
from pycls.registry import DATASETS
from pycls.runtime.distributed import Ranks

logger = logging.getLogger(__name__)

Dataset = ArrayDataset | FileDataset


def build_dataset(cfg: CfgNode, split: str, name: str = "") -> Dataset:
    """A split of the data set ``name`` (TRAIN.DATASET if empty)."""
    name = name or cfg.TRAIN.DATASET
    if cfg.DATA.SYNTHETIC:
        return synthetic(name, split, cfg.MODEL.NUM_CLASSES, cfg.TRAIN.IM_SIZE)
    with user_errors(name):
        root = str(resolve_root(cfg.DATA.ROOT))
        dataset = DATASETS.get(name)(**config.dataset_arguments(cfg, name, root=root, split=split))
    assert isinstance(dataset, ArrayDataset | FileDataset)
    return dataset


def build_training_set(cfg: CfgNode) -> tuple[Dataset, Subset | None]:
    """TRAIN.SPLIT of TRAIN.DATASET, and the subset that the options make of it (images a class, long tail, noise); None for
    the whole split."""
    tail, noise = cfg.DATA.LONG_TAIL, cfg.DATA.NOISE
    spec = SubsetSpec(
        images_per_class=cfg.TRAIN.IMAGES_PER_CLASS, profile=tail.PROFILE, imbalance=tail.IMBALANCE, largest=tail.LARGEST,
        smallest=tail.SMALLEST, noise=noise.KIND, rate=noise.RATE, pairs=noise.PAIRS, seed=cfg.DATA.SEED,
    )  # fmt: skip
    dataset, subset = make_subset(build_dataset(cfg, cfg.TRAIN.SPLIT), spec)
    found = subset.sha256 if subset is not None else ""
    if cfg.DATA.HASH not in ("", found):
        raise InputError(f"DATA.HASH is {cfg.DATA.HASH}, but the training set's is {found or 'none: it is the whole split'}: "
                         "these are other data; leave it empty to train on them")  # fmt: skip
    return dataset, subset


def build_test_set(cfg: CfgNode) -> tuple[Dataset, str]:
    """The data set to test on and its split: ``auto`` is test where there is one, else val."""
    name = cfg.TEST.DATASET or cfg.TRAIN.DATASET
    if cfg.TEST.SPLIT != "auto":
        return build_dataset(cfg, cfg.TEST.SPLIT, name), cfg.TEST.SPLIT
    try:
        return build_dataset(cfg, "test", name), "test"
    except MissingSplit:
        if cfg.TRAIN.SPLIT == "trainval" and name == cfg.TRAIN.DATASET:
            raise InputError(f"{name} has no test part, and TRAIN.SPLIT trainval trains on its val part: nothing is left "
                             "to test on; set TRAIN.SPLIT to train") from None  # fmt: skip
        return build_dataset(cfg, "val", name), "val"


def match_classes(
    cfg: CfgNode, dataset: Dataset, names: Sequence[str] | None, whose: str, trained_on: str = ""
) -> Dataset:
    """The test data with their labels numbered as a model's classes are (TEST.MATCH_CLASSES). A line of the log says how, where
    that is not plain.

    Args:
        cfg: the tree.
        dataset: to be tested on; it is changed.
        names: of the model's classes; None where nothing tells them.
        whose: what names them, for messages.
        trained_on: the data set that the model was trained on; empty if nothing says it.
    """
    if names is None:
        names = class_names.usual_order(trained_on, dataset.class_names)
        taken = "they are taken to be in ImageNet's usual order"
        if names is None:
            taken = f"class k of {dataset.name} is taken to be its output k"
        logger.info("%s does not name its classes: %s", whose, taken)
    if names is None:
        return dataset
    own = cfg.TEST.DATASET or cfg.TRAIN.DATASET
    numbers = trained_on and class_names.only_numbers_agree(dataset.class_names, names, own, trained_on)
    dataset, note = remap_labels(dataset, names, whose, cfg.TEST.MATCH_CLASSES == "position")
    if numbers and cfg.TEST.MATCH_CLASSES == "name":
        note = f"its classes, and those of {whose}, are named by numbers only: a number is taken to be the same class in both"
    if note:
        logger.info("%s: %s", dataset.name, note)
    return dataset


def num_classes(cfg: CfgNode, dataset: Dataset) -> int:
    """MODEL.NUM_CLASSES, or as many as the data set has; every label must be below, and TEST.TOP_K not above."""
    classes = cfg.MODEL.NUM_CLASSES or dataset.num_classes
    check_num_classes(dataset.labels, classes, dataset.name)
    if classes < cfg.TEST.TOP_K and CORE["TEST.TOP_K"].default != cfg.TEST.TOP_K:  # which is lowered where it must be
        raise InputError(f"TEST.TOP_K must be at most {classes}, the number of classes, not {cfg.TEST.TOP_K}")
    return int(classes)


def image_size(cfg: CfgNode, dataset: Dataset) -> int:
    """Side of the images that the model sees."""
    return int(cfg.TRAIN.IM_SIZE or dataset.image_size)


def input_of(cfg: CfgNode) -> tuple[int, int, int]:
    """Channels and side of the images, and the number of classes: of the training data, or without them by the options and
    by what is known of the data set."""
    try:
        dataset = build_dataset(cfg, cfg.TRAIN.SPLIT)
        return dataset.channels, image_size(cfg, dataset), num_classes(cfg, dataset)
    except InputError:
        known = shape_of(cfg.TRAIN.DATASET)
        side = cfg.TRAIN.IM_SIZE or (known.side if known else 0)
        classes = cfg.MODEL.NUM_CLASSES or (known.classes if known else 0)
        if not (side and classes):
            raise
        return known.channels if known else 3, side, classes


def build_train_loader(cfg: CfgNode, dataset: Dataset, device: torch.device, ranks: Ranks) -> TrainLoader:
    """Shuffled and augmented batches."""
    with user_errors("TRAIN"):
        sampler = make_sampler(
            cfg.TRAIN.SAMPLER, dataset.labels, cfg.TRAIN.SAMPLES_PER_CLASS, cfg.TRAIN.REPEAT_THRESHOLD
        )
        return TrainLoader(
            dataset, cfg.TRAIN.BATCH_SIZE, sampler=sampler, seed=cfg.RNG_SEED, rank=ranks.rank, world_size=ranks.world_size,
            device=device, channels_last=cfg.MODEL.CHANNELS_LAST, crop_padding=cfg.TRAIN.CROP_PADDING,
            hflip={"auto": None, "on": True, "off": False}[cfg.TRAIN.HFLIP], im_size=cfg.TRAIN.IM_SIZE,
            im_sizes=cfg.TRAIN.IM_SIZES, augmentation=build_augmentation(cfg, dataset), repeats=cfg.TRAIN.REPEATS,
            unreadable=_account(cfg, cfg.TRAIN.SPLIT), **_decoding(cfg, device),
        )  # fmt: skip


def build_augmentation(cfg: CfgNode, dataset: Dataset) -> Augmentation:
    """What is done to training images beside cutting and flipping; lighting to photographs only, as in pycls."""
    with user_errors("TRAIN.AUGMENT"):
        policy = names.parse(cfg.TRAIN.AUGMENT)
    pca_std = cfg.TRAIN.PCA_STD if isinstance(dataset, FileDataset) else 0.0
    return Augmentation(policy, cfg.TRAIN.COLOR_JITTER, pca_std, cfg.TRAIN.ERASE_PROB)


def _decoding(cfg: CfgNode, device: torch.device) -> dict[str, Any]:
    """Who decodes images in files, as the loaders' arguments; :class:`InputError` for a GPU that is not there."""
    options = cfg.DATA_LOADER
    if options.DECODER == "gpu" and device.type != "cuda":
        raise InputError(f"DATA_LOADER.DECODER gpu needs a CUDA GPU, and this run is on {device.type}; auto and pillow decode "
                         "anywhere")  # fmt: skip
    return {"num_workers": options.NUM_WORKERS, "pin_memory": options.PIN_MEMORY, "native": options.DECODER != "pillow",
            "decode_on_device": options.DECODER == "gpu"}  # fmt: skip


def _account(cfg: CfgNode, split: str) -> Unreadable:
    return Unreadable(cfg.DATA.MAX_UNREADABLE, split, unreadable_record(cfg))


def unreadable_record(cfg: CfgNode) -> Path:
    """The file that names the images that could not be read."""
    return Path(cfg.OUT_DIR) / "unreadable.txt"


def count_unreadable(cfg: CfgNode) -> dict[str, int]:
    """Split -> images of it that could not be read in this run."""
    return {split: len(reasons) for split, reasons in read_record(unreadable_record(cfg)).items()}


def build_eval_loader(
    cfg: CfgNode, dataset: Dataset, split: str, device: torch.device, ranks: Ranks, whole: bool = False
) -> EvalLoader:
    """Every sample of the split once; ``whole``: not cut yet where TEST.CROPS will cut several crops out of an image."""
    size, resize = cfg.TEST.CROP_SIZE or cfg.TRAIN.IM_SIZE, cfg.TEST.IM_SIZE
    if whole and cfg.TEST.CROPS == 10:
        size = resize
    with user_errors("TEST"):
        return EvalLoader(
            dataset, cfg.TEST.BATCH_SIZE, rank=ranks.rank, world_size=ranks.world_size, device=device,
            channels_last=cfg.MODEL.CHANNELS_LAST, im_size=size, resize=resize,
            unreadable=_account(cfg, split), **_decoding(cfg, device),
        )  # fmt: skip


def build_unknown_loader(cfg: CfgNode, known: Dataset, device: torch.device) -> EvalLoader:
    """The test part of TEST.OPEN_SET, normalised and sized as the known data are, whole on this process."""
    name = cfg.TEST.OPEN_SET
    dataset = build_dataset(cfg, "test", name)
    if dataset.channels != known.channels:
        raise InputError(f"TEST.OPEN_SET {name} has images of {dataset.channels} channels, {known.name} of {known.channels}")
    dataset.mean, dataset.std = known.mean, known.std
    with user_errors("TEST.OPEN_SET"):
        return EvalLoader(
            dataset, cfg.TEST.BATCH_SIZE, device=device, channels_last=cfg.MODEL.CHANNELS_LAST,
            im_size=image_size(cfg, known), unreadable=_account(cfg, name), **_decoding(cfg, device),
        )  # fmt: skip


def build_test_time_augmentation(cfg: CfgNode, dataset: Dataset) -> TestTimeAugmentation:
    """The views of a test image (TEST.CROPS)."""
    size = cfg.TEST.CROP_SIZE or image_size(cfg, dataset)
    if cfg.HEAD.PARALLEL == "class" and (cfg.TEST.CROPS > 1 or cfg.TEST.TABLES):
        raise InputError("TEST.CROPS and TEST.TABLES need the logits of all classes on each process, which HEAD.PARALLEL class "
                         "does without")  # fmt: skip
    if cfg.TEST.CROPS == 10 and size >= cfg.TEST.IM_SIZE:
        raise InputError(f"TEST.CROPS 10 needs a TEST.IM_SIZE above the crops' side, {size}, to cut them from; it is "
                         f"{cfg.TEST.IM_SIZE}")  # fmt: skip
    return TestTimeAugmentation(cfg.TEST.CROPS, size)
