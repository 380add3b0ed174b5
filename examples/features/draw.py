"""Trains one small network with four heads and draws their two-dimensional features side by side.

    python examples/features/draw.py [features.png [KEY VALUE ...]]

Interrupted trainings are resumed, finished ones are only drawn. Data: MNIST (docs/data.md), or as the options say
(``TRAIN.DATASET digits``).
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from matplotlib import patheffects  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from pycls import build, config  # noqa: E402
from pycls.engine.checkpoint.checkpoints import load_model_state  # noqa: E402
from pycls.engine.checkpoint.state_file import load_weights  # noqa: E402
from pycls.report import summary  # noqa: E402
from pycls.report.plots import collect_features  # noqa: E402
from pycls.runtime.distributed import Ranks  # noqa: E402

PANELS = {
    "softmax": ("softmax", []),
    "RBF-Softmax": ("rbf_softmax", []),
    "CosFace": ("cosface", ["HEAD.SCALE", "7", "HEAD.MARGIN", "0.2"]),
    "softmax + centre loss": ("center", ["HEAD.WEIGHT", "0.2"]),
}
"""Title -> head and options; CosFace's are its authors' for two-dimensional features."""

INK = "#222222"


def train(head: str, options: list[str]) -> Path:
    """Trains in a separate process, as a user would. Returns the run's folder."""
    out_dir = Path("runs/features") / head
    command = [sys.executable, ROOT / "tools/run_net.py", "--cfg", ROOT / "examples/features/plane.yaml"]
    subprocess.run([*command, "HEAD.NAME", head, *options, "OUT_DIR", out_dir], check=True)
    return out_dir


def load(out_dir: Path) -> tuple[Any, Tensor, Tensor]:
    """The trained model, and the features [N, 2] and labels [N] of the test images."""
    cfg = config.load(str(out_dir / "config.yaml"))
    dataset = build.build_dataset(cfg, "test")
    size, classes = build.image_size(cfg, dataset), build.num_classes(cfg, dataset)
    model = build.build_model(cfg, dataset.channels, size, classes)
    weights, _ = load_weights(out_dir / "model.safetensors")
    load_model_state(model, weights, str(out_dir))
    batches = build.build_eval_loader(cfg, dataset, "test", torch.device("cpu"), Ranks())
    return model, *collect_features(model, batches)


def anchors(head: str, model: Any) -> tuple[Tensor | None, Tensor | None]:
    """What the head holds of each class: points [K, 2], or directions [K, 2]."""
    if head == "center":
        return model.head.centers, None
    weight = model.head.weight.detach()
    return (weight, None) if model.head.similarity.domain == "distance" else (None, weight)


def draw_panel(axes: Any, head: str, out_dir: Path) -> None:
    """One head's features: a dot an image, its colour the class; a cross a prototype or centre, a ray a direction."""
    model, features, labels = load(out_dir)
    points, directions = anchors(head, model)
    colours = matplotlib.colormaps["tab10"]
    axes.scatter(features[:, 0], features[:, 1], s=2, c=colours(labels.numpy()), alpha=0.35, linewidths=0)
    reach = float(features.norm(dim=1).quantile(0.98))
    for k in range(10):
        if directions is not None:
            x, y = (reach * directions[k] / directions[k].norm()).tolist()
            axes.plot([0, x], [0, y], color=colours(k), linewidth=0.8, zorder=0)
        if points is not None:
            axes.scatter(*points[k].tolist(), marker="X", s=34, color=colours(k), edgecolors="black", linewidths=0.6)
        x, y = features[labels == k].median(dim=0).values.tolist()
        halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
        axes.annotate(str(k), (x, y), xytext=(6, 6) if points is not None else (0, 0), textcoords="offset points",
                      ha="center", va="center", fontsize=9, weight="bold", color=INK, path_effects=halo)  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#cccccc")


def main() -> None:
    """Trains, draws and saves."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "features.png")
    figure = Figure(figsize=(12, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, (head, options)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        out_dir = train(head, [*options, *sys.argv[2:]])
        draw_panel(axes, head, out_dir)
        error = summary.read(out_dir / "result.json")["test"]["top1_err"]
        axes.set_title(f"{title}: {error:.2f} % error", fontsize=10, color=INK)
    figure.savefig(path)
    print(f"drawn: {path}")


if __name__ == "__main__":
    main()
