"""A model on the test data: results for result.json or test.json, and CSV files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from pycls import build
from pycls.data.dataset import FileDataset
from pycls.engine import open_set
from pycls.engine.evaluate import Evaluation, evaluate
from pycls.engine.predictions import Predictions, by_training_size
from pycls.models.classifier import Classifier
from pycls.report import csv_files, summary
from pycls.runtime.distributed import Ranks
from pycls.runtime.files import make_out_dir

logger = logging.getLogger(__name__)


@dataclass
class Assessment:
    """What a test found.

    Attributes:
        numbers: errors, loss, calibration, counts by class and group, open-set scores.
        predictions: a row an image; None where they are not kept.
    """

    numbers: dict[str, Any]
    predictions: list[tuple[int, int, list[int], list[float]]] | None


def assess(
    cfg: CfgNode, model: Classifier, classes: int, test_set: tuple[build.Dataset, str], counts: Sequence[int] | None,
    device: torch.device, ranks: Ranks,
) -> Assessment:  # fmt: skip
    """Tests a model; all processes call it.

    Args:
        cfg: the tree.
        model: on its device.
        classes: K.
        test_set: the data and the name of their split.
        counts: training images of each class, where they are known.
        device: where it runs.
        ranks: this process's.
    """
    loader = build.build_eval_loader(cfg, *test_set, device, ranks, whole=True)
    evaluation = Evaluation(classes, cfg.TEST.TOP_K, device)
    predictions = Predictions(evaluation.top_k) if cfg.TEST.TABLES else None
    numbers = evaluate(model, loader, evaluation, build.build_test_time_augmentation(cfg, test_set[0]), predictions)
    rows = predictions.gather() if predictions is not None else None
    if ranks.is_main:
        numbers["groups"] = by_training_size(numbers, counts) if counts is not None else None
        numbers["open_set"] = _open_set(cfg, model, test_set, device)
    return Assessment(numbers, rows)


def _open_set(
    cfg: CfgNode, model: Any, known: tuple[build.Dataset, str], device: torch.device
) -> dict[str, Any] | None:
    """How well the known classes' test images are told from those of TEST.OPEN_SET; None if none is asked for."""
    if not cfg.TEST.OPEN_SET:
        return None
    known_scores = open_set.score_all(model, build.build_eval_loader(cfg, *known, device, Ranks()))
    unknown_scores = open_set.score_all(model, build.build_unknown_loader(cfg, known[0], device))
    return {"data_set": cfg.TEST.OPEN_SET, "scores": open_set.separation(known_scores, unknown_scores)}


def write_csv(
    folder: Path, prefix: str, found: Assessment, dataset: build.Dataset, names: Sequence[str], counts: Sequence[int] | None
) -> list[str]:
    """Classes, confusion and predictions as CSV files, if predictions were kept. Returns their names."""
    if found.predictions is None:
        return []
    of_image = dataset.describe if isinstance(dataset, FileDataset) else str
    written = [
        csv_files.write_classes(folder / f"{prefix}_classes.csv", found.numbers, names, counts),
        csv_files.write_predictions(folder / f"{prefix}_predictions.csv", found.predictions, names, of_image),
    ]
    if found.numbers["confusion"]:
        written.append(csv_files.write_confusion(folder / f"{prefix}_confusion.csv", found.numbers["confusion"], names))
    return written


def report(cfg: CfgNode, name: str, result: dict[str, Any], text: str) -> None:
    """JSON for programs in OUT_DIR, text for people."""
    logger.info("\n%s\n", text)
    path = make_out_dir(cfg.OUT_DIR) / name
    summary.write(path, result)
    logger.info("in %s", path)
