"""The pictures a run draws: its curves, and its features when they have two dimensions."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycls.runtime.files import atomic_write

INK = "#222222"


def _figure(**size: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", **size)
    FigureCanvasAgg(figure)
    return figure


def draw_curves(path: str | Path, history: list[dict[str, Any]], title: str, split: str = "val") -> None:
    """Loss and top-1 error by epoch, of training and of each evaluation.

    Args:
        path: the PNG to write.
        history: a row an epoch, ``{"epoch": 1, "train": {...}, "model": {...}, "ema": {...}, "best": True}``.
        title: shown above.
        split: what the evaluations were on.
    """
    figure = _figure(figsize=(9, 3.6), dpi=120)
    figure.suptitle(title, fontsize=10, color=INK)
    marker = "o" if len(history) <= 30 else None
    for axes, key, label in zip(figure.subplots(1, 2), ("loss", "top1_err"), ("loss", "top-1 error (%)"), strict=True):
        for name, colour, text in (("train", "#9aa5b1", "train"), ("model", "#0b6e99", split),
                                   ("ema", "#d9730d", f"{split}, moving average")):
            rows = [row for row in history if name in row and row[name].get(key) is not None]
            if rows:
                axes.plot([r["epoch"] for r in rows], [r[name][key] for r in rows], color=colour, label=text,
                          marker=marker, markersize=3, linewidth=1.5)  # fmt: skip
        best = [row for row in history if row.get("best")]
        if best and key == "top1_err":
            value = min(best[-1][name][key] for name in ("model", "ema") if name in best[-1])
            axes.annotate(f"best {value:.2f}", (best[-1]["epoch"], value), textcoords="offset points", xytext=(5, -11),
                          ha="left", fontsize=8, color=INK)  # fmt: skip
        values = [row[n][key] for row in history for n in ("train", "model", "ema") if n in row and row[n].get(key)]
        if values and min(values) > 0 and max(values) / min(values) > 10:
            axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_title(label, fontsize=9, color=INK, loc="left")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legends.clear()
    figure.axes[0].legend(frameon=False, fontsize=8)
    atomic_write(path, lambda file: figure.savefig(file, format="png"))


def draw_features(path: str | Path, features: Tensor, labels: Tensor, prototypes: Tensor | None, names: list[str],
                  title: str) -> None:  # fmt: skip
    """2-D features coloured by class, with the prototypes as crosses.

    Args:
        path: the PNG to write.
        features: [N, 2].
        labels: int64 [N].
        prototypes: [K, 2] in the features' space, or None where they only give directions.
        names: of the classes.
        title: shown above.
    """
    import matplotlib

    figure = _figure(figsize=(6, 5.2), dpi=120)
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "gist_ncar"]
    for k, name in enumerate(names):
        own = features[labels == k]
        colour = colours(k if len(names) <= 10 else k / len(names))
        axes.scatter(own[:, 0], own[:, 1], s=3, color=colour, alpha=0.5, linewidths=0, label=name)
        if prototypes is not None:
            axes.scatter(*prototypes[k].tolist(), marker="X", s=60, color=colour, edgecolors="black", linewidths=0.8)
    axes.set_title(title, fontsize=10, color=INK)
    axes.axhline(0, color=INK, linewidth=0.5, alpha=0.3)
    axes.axvline(0, color=INK, linewidth=0.5, alpha=0.3)
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) <= 20:
        axes.legend(frameon=False, fontsize=8, markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    atomic_write(path, lambda file: figure.savefig(file, format="png"))


@torch.no_grad()
def collect_features(model: Any, batches: Any, limit: int = 10_000) -> tuple[Tensor, Tensor]:
    """Features [N, D] and labels [N] of the first ``limit`` samples, on the CPU."""
    model.eval()
    features, labels, count = [], [], 0
    for images, targets, _ in batches:
        features.append(model.features(images).float().cpu())
        labels.append(targets.cpu())
        count += len(targets)
        if count >= limit:
            break
    return torch.cat(features)[:limit], torch.cat(labels)[:limit]
