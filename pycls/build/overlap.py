"""Test images that were trained on: an error on these is no test error, and is not called so."""

import logging
from collections.abc import Mapping
from typing import Any

import yaml
from yacs.config import CfgNode

from pycls import config
from pycls.build.data import Dataset, build_dataset
from pycls.data.dataset import FileDataset
from pycls.data.index.overlap import shared_images
from pycls.errors import InputError
from pycls.registry import DATASETS

logger = logging.getLogger(__name__)

_PARTS = {"train": {"train"}, "val": {"val"}, "trainval": {"train", "val"}, "test": {"test"}}


def refuse_own_test_set(cfg: CfgNode, trained: Dataset, tested: Dataset, split: str) -> None:
    """Raises InputError if a run would test on images that it trains on. The parts of one set in memory are taken to be apart.

    Args:
        cfg: the tree.
        trained: the training set.
        tested: the test set.
        split: its part.
    """
    name, remedy = cfg.TEST.DATASET or cfg.TRAIN.DATASET, "name other test images with TEST.SPLIT or TEST.DATASET"
    if name == cfg.TRAIN.DATASET and _overlap(cfg.TRAIN.SPLIT, split):
        raise InputError(f"TRAIN.SPLIT {cfg.TRAIN.SPLIT}: {name} {split}, which the test error is to be of, is trained on; "
                         f"{remedy}, or train on another part")  # fmt: skip
    compared = not cfg.DATA.SYNTHETIC and (isinstance(tested, FileDataset) or name != cfg.TRAIN.DATASET)
    found = shared_images(trained, tested) if compared else None
    if found is not None:
        raise InputError(f"{tested.name}: {found[0]:,} of the {len(tested):,} images of {split}, which the test error is to be "
                         f"of, are trained on, such as {found[1]}; {remedy}")  # fmt: skip


def refuse_trained_on(cfg: CfgNode, tested: Dataset, split: str, about: Mapping[str, Any], source: str) -> None:
    """Raises InputError if weights would be tested on images that they were trained on; where TEST.SPLIT asks for the training
    images, a line of the log says so. What is known of the weights is the configuration in their file, or the data set and part
    that it names.

    Args:
        cfg: the tree.
        tested: the test set.
        split: its part.
        about: what the file of weights tells.
        source: the weights, for messages.
    """
    written = _configuration(about)
    train = written.get("TRAIN", {})
    name, part = (train.get("DATASET"), train.get("SPLIT")) if train else (about.get("data"), about.get("split"))
    if cfg.DATA.SYNTHETIC or not isinstance(name, str) or not isinstance(part, str):
        return
    found = _trained_on(cfg, tested, split, written, name, part)
    if found and cfg.TEST.SPLIT in ("train", "trainval", part):
        logger.warning("%s was trained on %s: this is no test error", source, found)
    elif found:
        raise InputError(f"{source} was trained on {found}; TEST.SPLIT {part} tests on training images all the same")


def _trained_on(cfg: CfgNode, tested: Dataset, split: str, written: Mapping[str, Any], name: str, part: str) -> str:
    """Which of the images were trained on, for people; empty for none."""
    same = name == (cfg.TEST.DATASET or cfg.TRAIN.DATASET) and _same_section(cfg, written, name)
    before = None if same and not isinstance(tested, FileDataset) else _trained_set(cfg, written, name, part)
    if before is None:
        which = f"{name} {part}" + (f", which has the images of {split}" if split != part else "")
        return which if same and _overlap(part, split) else ""
    found = shared_images(before, tested)
    return "" if found is None else f"{found[0]:,} of the {len(tested):,} images of {tested.name}, {split}, such as {found[1]}"


def _overlap(one: str, other: str) -> bool:
    return bool(_PARTS.get(one, {one}) & _PARTS.get(other, {other}))


def _configuration(about: Mapping[str, Any]) -> dict[str, Any]:
    """Our configuration in a file (``config``) or pycls's (``cfg``), its sections; empty if it has none."""
    try:
        tree = yaml.safe_load(about.get("config") or about.get("cfg") or "")
    except (yaml.YAMLError, AttributeError, TypeError):
        return {}
    return {key: value for key, value in tree.items() if isinstance(value, dict)} if isinstance(tree, dict) else {}


def _section(written: Mapping[str, Any], name: str) -> Any:
    return written.get(config.section_of(DATASETS.get(name), name), {})


def _same_section(cfg: CfgNode, written: Mapping[str, Any], name: str) -> bool:
    """Whether a data set's options, such as its folder, are the same in both; what a file does not tell is not compared."""
    own = _section(cfg, name)
    return all(own.get(key) in (value, None) for key, value in _section(written, name).items() if not isinstance(value, list))


def _trained_set(cfg: CfgNode, written: Mapping[str, Any], name: str, part: str) -> Dataset | None:
    """The data set of a configuration that was read, if it is here. Nothing is fetched, and no module imported."""
    if name not in DATASETS or "DATA" not in written or "://" in str(_section(written, name)):
        return None
    there = cfg.clone()
    there.defrost()
    try:
        there[config.section_of(DATASETS.get(name), name)] = CfgNode(_section(written, name))
        there.DATA.ROOT, there.DATA.DOWNLOAD = written["DATA"].get("ROOT", ""), False
        return build_dataset(there, part, name)
    except Exception:  # whatever options of another machine, or from a file that someone made, lead to
        return None
