"""The results of a test by class and by image, and the confusion matrix, as CSV files."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycls.runtime.files import atomic_write


def _write(path: Path, rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))
    return path.name


def _named(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def write_classes(path: Path, result: Mapping[str, Any], names: Sequence[str], counts: Sequence[int] | None) -> str:
    """A row a class: training images (empty if not known), tested images, errors, top-1 error in percent, precision (right ones
    of those predicted as this class, in percent; empty if there are none)."""
    rows: list[Sequence[Any]] = [("number", "class", "training_images", "samples", "errors", "top1_err", "precision")]
    of_class = zip(result["class_samples"], result["class_errors"], result["class_predictions"], strict=True)
    for k, (samples, errors, predicted) in enumerate(of_class):
        rows.append((k, _named(names, k), "" if counts is None else counts[k], samples, errors,
                     f"{100 * errors / samples:.4f}" if samples else "",
                     f"{100 * (samples - errors) / predicted:.4f}" if predicted else ""))  # fmt: skip
    return _write(path, rows)


def write_confusion(path: Path, confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """True class by row, predicted class by column."""
    head = ["true \\ predicted", *(_named(names, k) for k in range(len(confusion)))]
    return _write(path, [head, *([_named(names, k), *row] for k, row in enumerate(confusion))])


def write_predictions(
    path: Path, predictions: Iterable[tuple[int, int, list[int], list[float]]], names: Sequence[str],
    of_image: Callable[[int], str],
) -> str:  # fmt: skip
    """A row an image: its place in the split, its file or number, its class, and the likeliest classes, with probabilities."""
    rows: list[Sequence[Any]] = []
    for number, label, classes, probabilities in predictions:
        guesses = [part for k, p in zip(classes, probabilities, strict=True) for part in (_named(names, k), f"{p:.6f}")]
        rows.append((number, of_image(number), _named(names, label), *guesses))
    width = (len(rows[0]) - 3) // 2 if rows else 0
    head = ["number", "image", "class", *(f"{part}{k + 1}" for k in range(width) for part in ("predicted", "probability"))]
    return _write(path, [head, *rows])
