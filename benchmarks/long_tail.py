#!/usr/bin/env python3
"""Methods for long tails on one data set with several seeds: accuracy on many, medium and few, as the evaluation reports it.

    python benchmarks/long_tail.py fashion_mnist_lt --root DATA        # minutes on a CPU
    python benchmarks/long_tail.py cifar100_lt --root DATA             # on a GPU

Each method is a file of ``configs/<set>``, unchanged. Finished runs are not repeated, so the command can be stopped
and restarted. Prints mean and standard deviation over the seeds and whether their order is that of the literature.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import setting, table

ROOT = Path(__file__).resolve().parents[1]


def train(config: Path, root: str, seed: int, out: Path, options: list[str]) -> dict[str, float]:
    """Runs the command line; accuracy in percent of each group and of all."""
    command = [sys.executable, str(ROOT / "tools/run_net.py"), "--cfg", str(config), "RNG_SEED", str(seed), "OUT_DIR", str(out),
               "TENSORBOARD", "False", *(["DATA.ROOT", root] if root else []), *options]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{config.stem}: {done.stderr.strip() or done.stdout[-500:]}")
    return accuracies(json.loads((out / "result.json").read_text(encoding="utf-8"))["test"])


def accuracies(test: Mapping[str, Any]) -> dict[str, float]:
    """In percent: of each group of the evaluation that has classes, each class counting alike, and of all test images.

    Args:
        test: that of ``result.json``.
    """
    groups = {name: 100 - group["err"] for name, group in test["groups"].items() if group["classes"]}
    return groups | {"all": 100 - test["top1_err"]}


def ordering(runs: Mapping[str, Sequence[Mapping[str, float]]], plain: str = "ce") -> list[str]:
    """Whether the methods' means lie to cross entropy's as in the literature: above on few and all, below on many.

    Kang et al. (ICLR 2020, table 5) have it so for cRT, LWS, tau-norm and NCM; Cao et al. (NeurIPS 2019) and Ren et al.
    (NeurIPS 2020) the error on all for LDAM-DRW and balanced softmax.
    """
    means = {method: {name: statistics.mean(one[name] for one in found) for name in found[0]} for method, found in runs.items()}
    first = means.pop(plain, None)
    if first is None or not means:
        return []
    lines = []
    for group, sign in (("many", -1), ("few", 1), ("all", 1)):
        wrong = [method for method, mean in means.items() if group in mean and sign * (mean[group] - first[group]) < 0]
        outcome = f"MISSED by {', '.join(wrong)}" if wrong else "kept"
        lines.append(f"{'above' if sign > 0 else 'below'} cross entropy on {group}: {outcome}")
    return lines


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
    if flags.seeds < 1 or not chosen or len(chosen) < len(set(flags.methods or ())):
        parser.error(f"--seeds is 1 or more, --methods are of {', '.join(path.stem for path in files)}")
    runs: dict[str, list[dict[str, float]]] = {path.stem: [] for path in chosen}
    for seed in range(1, flags.seeds + 1):
        for path in chosen:
            runs[path.stem].append(train(path, flags.root, seed, flags.out / flags.set / f"{path.stem}_{seed}", flags.options))
            print(path.stem, seed, {name: round(value, 2) for name, value in runs[path.stem][-1].items()}, file=sys.stderr)
    columns = [*next(iter(runs.values()))[0]]
    rows = [[name, *(shown([one[column] for one in found]) for column in columns)] for name, found in runs.items()]
    print(setting())
    print(table([f"{flags.set}, {flags.seeds} seeds", *(f"{column} (%)" for column in columns)], rows))
    print(*ordering(runs), sep="\n")


if __name__ == "__main__":
    main()
