"""What a run writes and prints at its end: a table for a person, JSON for programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import simplejson

from pycls.errors import InputError
from pycls.runtime.files import atomic_write


def write(path: str | Path, result: Mapping[str, Any]) -> None:
    """A result as JSON, whole or not at all; NaN becomes null."""
    text = simplejson.dumps(result, indent=1, ignore_nan=True)
    atomic_write(path, lambda file: file.write(text.encode()))


def read(path: str | Path) -> dict[str, Any]:
    """A result that :func:`write` wrote. Raises InputError if it is none."""
    try:
        return dict(simplejson.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no result of a run: {error}") from None


def table(result: Mapping[str, Any]) -> str:
    """A short table of the test, and of the classes with the most errors."""
    test = result["test"]
    rows = [
        ("tested on", f"{result['test_set']} {result['test_split']}, {test['samples']:,} images"),
        ("weights", _weights(result)),
        ("top-1 error", f"{test['top1_err']:.2f} %  ({test['top1_errors']:,} wrong)"),
        (f"top-{test['top_k']} error", f"{test['topk_err']:.2f} %  ({test['topk_errors']:,} wrong)"),
        ("loss", f"{test['loss']:.4f}"),
        ("nll, ece", f"{test['nll']:.4f}, {test['ece']:.4f}"),
    ]
    groups = {name: group for name, group in (test.get("groups") or {}).items() if group["classes"]}
    if len(groups) > 1:
        rows += [(f"{name} shots", f"{group['err']:.2f} %  (mean error of {group['classes']:,} classes)")
                 for name, group in groups.items()]  # fmt: skip
    worst = _worst_classes(test, result["class_names"])
    if worst:
        rows.append(("hardest classes", worst))
    unknown = test.get("open_set")
    if unknown:
        rows += [(f"against {unknown['data_set']}", f"{name}: AUROC {numbers['auroc']:.4f}, FPR95 {numbers['fpr95']:.4f}")
                 for name, numbers in unknown["scores"].items()]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _weights(result: Mapping[str, Any]) -> str:
    if "history" not in result:
        return str(result["weights"])
    average = "moving average, " if result["weights"] == "ema" else ""
    chosen = f"best on {result['chosen_on']}" if result["chosen_on"] == "val" else "the last"
    return f"{average}epoch {result['epoch']}, {chosen}"


def _worst_classes(test: Mapping[str, Any], names: list[str]) -> str:
    rates = [(errors / samples, k) for k, (errors, samples) in
             enumerate(zip(test["class_errors"], test["class_samples"], strict=True)) if samples and errors]  # fmt: skip
    return ", ".join(f"{names[k] if k < len(names) else k} {100 * rate:.1f} %" for rate, k in sorted(rates, reverse=True)[:3])


def timing(times: Mapping[str, float], batch_size: int, decodes_on_gpu: bool) -> str:
    """Seconds a batch and images a second of the step, the loader and both together, and which one to mend.

    Args:
        times: of ``time_steps``.
        batch_size: images in a batch.
        decodes_on_gpu: whether the loader does.
    """
    loader = "loader, JPEGs on GPU" if decodes_on_gpu else "loader"
    names = {"test_step_s": "test step (forward)", "train_step_s": "train step", "loader_s": loader,
             "both_s": "loader and train step"}  # fmt: skip
    lines = [f"  {text:<22} {1000 * times[key]:9.2f} ms  {batch_size / times[key]:10,.0f} img/s" for key, text in names.items()]
    slower = "the loader" if times["loader_s"] > times["train_step_s"] else "the training step"
    if "gpu_waits" in times:
        lines.append(f"  {'the GPU waits for data':<22} {100 * times['gpu_waits']:9.1f} % of the time")
    return "\n".join([*lines, f"  {slower} is what limits training here"])
