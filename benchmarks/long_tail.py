#!/usr/bin/env python3
"""Methods for long tails on one data set, each over several seeds: accuracy on many, medium and few.

    python benchmarks/long_tail.py fashion_mnist_lt --root DATA        # minutes on a CPU
    python benchmarks/long_tail.py cifar100_lt --root DATA             # on a GPU

Each method is a file of ``configs/<set>``, run as it is. A run that is finished is not run again, so that the command may be
stopped and repeated. Prints mean and standard deviation over the seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import setting, table

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {"many": (101, 10**9), "medium": (20, 100), "few": (0, 19)}
"""Training images of a class, from and to (Liu et al., CVPR 2019)."""


def train(config: Path, root: str, seed: int, out: Path, options: list[str]) -> dict[str, float]:
    """Runs the command line; accuracy in percent of each group and of all."""
    command = [sys.executable, str(ROOT / "tools/run_net.py"), "--cfg", str(config), "RNG_SEED", str(seed), "OUT_DIR", str(out),
               "TENSORBOARD", "False", *(["DATA.ROOT", root] if root else []), *options]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{config.stem}: {done.stderr.strip() or done.stdout[-500:]}")
    test = json.loads((out / "result.json").read_text(encoding="utf-8"))["test"]
    images = np.bincount(np.load(out / "training_set.npz")["labels"], minlength=len(test["class_samples"]))
    return accuracies(images, np.array(test["class_samples"]), np.array(test["class_errors"]))


def accuracies(images: np.ndarray, samples: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """In percent, of each group that has classes, each class counting alike, and of all test images.

    Args:
        images: for training, of each class [K].
        samples: for testing, of each class [K].
        errors: among them [K].
    """
    right = 100 * (1 - errors / samples)
    found = {name: float(right[(images >= low) & (images <= high)].mean()) for name, (low, high) in GROUPS.items()
             if ((images >= low) & (images <= high)).any()}  # fmt: skip
    return found | {"all": float(100 * (1 - errors.sum() / samples.sum()))}


def shown(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.1f}" + (f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Methods for long tails, each over several seeds.")
    parser.add_argument("set", choices=("fashion_mnist_lt", "cifar100_lt"))
    parser.add_argument("--root", default="", help="folder of the data sets (DATA.ROOT)")
    parser.add_argument("--out", type=Path, default=Path("runs/long_tail"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    parser.add_argument("--methods", nargs="*", help="files of configs/<set> (default: all)")
    parser.add_argument("--options", nargs="*", default=[], help="further options of every run, such as NUM_THREADS 1")
    flags = parser.parse_args()
    files = sorted((ROOT / "configs" / flags.set).glob("*.yaml"))
    chosen = [path for path in files if flags.methods is None or path.stem in flags.methods]
    runs: dict[str, list[dict[str, float]]] = {path.stem: [] for path in chosen}
    for seed in range(1, flags.seeds + 1):
        for path in chosen:
            runs[path.stem].append(train(path, flags.root, seed, flags.out / flags.set / f"{path.stem}_{seed}", flags.options))
            print(path.stem, seed, {name: round(value, 2) for name, value in runs[path.stem][-1].items()}, file=sys.stderr)
    columns = [*next(iter(runs.values()))[0]]
    rows = [[name, *(shown([one[column] for one in found]) for column in columns)] for name, found in runs.items()]
    print(setting())
    print(table([f"{flags.set}, {flags.seeds} seeds", *(f"{column} (%)" for column in columns)], rows))


if __name__ == "__main__":
    main()
