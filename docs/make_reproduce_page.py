#!/usr/bin/env python3
"""Writes docs/reproduce.md from the headers of the configurations of the papers' experiments.

    python docs/make_reproduce_page.py              # writes the page
    python docs/make_reproduce_page.py --check      # exit 1 unless the page is what would be written
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reproduce.md"
FOLDERS = ("rbf_softmax", "tvmf", "lsoftmax", "smooth_topk", "mnist_features", "long_tail")

OPENING = """\
# The papers' experiments

The first lines of each file give paper, published figure, cost and the exact command. The cost is the number of multiply-adds:
forward for every training image, and twice as many backward; in a second stage with a frozen backbone, forward only. Figures
are those of the papers; our own measurements are in the README. If a paper has no figure, or its figure could not be verified,
the file says so. This page is written by `python docs/make_reproduce_page.py`.

To check that a configuration runs, and how fast, use random images instead of its data:

```bash
python tools/run_net.py --mode info --cfg configs/smooth_topk/cifar100_svm.yaml DATA.SYNTHETIC True
python tools/run_net.py --mode time --cfg configs/long_tail/cifar10_lt_ldam_drw.yaml DATA.SYNTHETIC True PREC_TIME.NUM_ITER 2
```

CIFAR-100-LT and Fashion-MNIST-LT, one file per method with both stages, are in `configs/cifar100_lt` and
`configs/fashion_mnist_lt` ([Long tails](long_tail.md)); pycls's own 65 configurations in `configs/dds_baselines` and
`configs/archive` ([Configuration](config.md)).
"""


def row(path: Path) -> str:
    """File, first line, figure and cost of one configuration."""
    lines = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    published = next(line for line in lines if line.startswith("Published"))
    (cost,) = re.findall(r"Cost: (\S+) multiply-adds", "\n".join(lines))
    return f"| `{path.relative_to(ROOT).as_posix()}` | {lines[0]} | {published.partition(': ')[2]} | {cost} |"


def page() -> str:
    """The whole text."""
    parts = [OPENING]
    for folder in FOLDERS:
        rows = [row(path) for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))]
        heading = f"## configs/{folder}\n\n| file | experiment | published | cost |\n|---|---|---|---|"
        parts.append("\n".join([heading, *rows]) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Returns the exit code."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is not up to date")
    return 1


if __name__ == "__main__":
    sys.exit(main())
