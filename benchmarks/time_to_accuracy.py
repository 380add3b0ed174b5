#!/usr/bin/env python3
"""Images per second of a training, and the seconds until its evaluations first reached an accuracy.

    python benchmarks/time_to_accuracy.py [--cfg FILE] [--top1 75] [--out DIR] [KEY VALUE ...]

Runs the command line on a configuration (CIFAR-100 with a ResNet-18) with further options, from the beginning; a finished
run is only read. All figures are those of the run: accuracies from ``result.json``, which are those of TRAIN.EVAL_SPLIT, the
higher of model and moving average; times from ``stdout.log``.

- seconds of training: the sum over the log periods of images divided by images per second: only steps and loading. The first
  period includes one-time costs: cuDNN's autotuning, compilation.
- total seconds: from the first line of the log to that after the epoch's evaluation; this includes evaluations and checkpoints,
  but not the start of the program and reading the data. The log's clock has whole seconds.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import simplejson
import torch
import yaml
from common import setting, table

from pycls.runtime.log import LOG_FILE, read_json_stats

ROOT = Path(__file__).resolve().parents[1]
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)$")


def run(config: Path, out: Path, options: list[str]) -> None:
    """Trains by the command line; what it prints is seen as it comes, on standard error."""
    command = [sys.executable, str(ROOT / "tools/run_net.py"), "--cfg", str(config), "OUT_DIR", str(out), *options]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"error: the training ended with exit code {done.returncode}; it can be continued, but not timed then")


def training_seconds(log: Path, batch: int) -> list[float]:
    """Of each epoch: its steps and their loader."""
    seconds: dict[int, float] = {}
    done = 0
    for row in read_json_stats(log, "train_iter"):
        epoch, step = int(row["epoch"].split("/")[0]), int(row["iter"].split("/")[0])
        if epoch not in seconds:
            done = 0
        seconds[epoch] = seconds.get(epoch, 0.0) + (step - done) * batch / row["img_per_s"]
        done = step
    return list(seconds.values())


def wall_seconds(log: Path) -> list[float]:
    """Of each epoch: from the first line to the one after its evaluation."""
    lines = [match.groups() for match in map(STAMP.match, log.read_text(encoding="utf-8").splitlines()) if match]
    if any(text.startswith("continuing from ") for _, text in lines):
        raise SystemExit(f"error: {log} is of a training that was stopped and continued, whose times say nothing")
    times = [datetime.fromisoformat(stamp) for stamp, _ in lines]
    ends = [at for at, (_, text) in zip(times, lines, strict=True) if '"_type": "train_epoch"' in text]
    return [(end - times[0]).total_seconds() for end in ends]


def accuracies(history: list[dict[str, Any]]) -> list[float | None]:
    """After each epoch, in percent; None where nothing was evaluated."""
    found: list[float | None] = []
    for row in history:
        errors = [row[name]["top1_err"] for name in ("model", "ema") if name in row]
        found.append(100 - min(errors) if errors else None)
    return found


def first_at(values: list[float | None], least: float) -> int | None:
    """Place of the first value that is no less; None where there is none."""
    return next((place for place, value in enumerate(values) if value is not None and value >= least), None)


def report(out: Path, top1: float) -> dict[str, Any]:
    """All figures of a finished run; seconds and epoch are None where the accuracy was not reached."""
    cfg = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    history = simplejson.loads((out / "result.json").read_text(encoding="utf-8"))["history"]
    batch = cfg["TRAIN"]["BATCH_SIZE"]
    training, wall, reached = training_seconds(out / LOG_FILE, batch), wall_seconds(out / LOG_FILE), accuracies(history)
    steps = int(read_json_stats(out / LOG_FILE, "train_iter")[0]["iter"].split("/")[1])
    place = first_at(reached, top1)
    evaluated = [value for value in reached if value is not None]
    return {
        "split": cfg["TRAIN"]["EVAL_SPLIT"], "epochs": len(history), "batch": batch, "img_per_epoch": steps * batch,
        "img_per_s": steps * batch / statistics.median(training[1:] or training), "first_epoch_s": training[0],
        "top1": top1, "epoch": None if place is None else place + 1,
        "reached": None if place is None else reached[place],
        "training_s": None if place is None else sum(training[: place + 1]),
        "with_evaluations_s": None if place is None else wall[place],
        "whole_training_s": sum(training), "whole_with_evaluations_s": wall[-1],
        "best": max(evaluated, default=None), "last": evaluated[-1] if evaluated else None,
    }  # fmt: skip


def shown(found: dict[str, Any]) -> str:
    """The table."""
    target = f"{found['top1']:g} % of {found['split']}"
    rows = [["images a second, median of the epochs after the first", f"{found['img_per_s']:,.0f}"],
            ["seconds of training in the first epoch", f"{found['first_epoch_s']:.1f}"]]  # fmt: skip
    if found["epoch"] is None:
        rows.append([f"{target}: not reached", ""])
    else:
        rows += [[f"{target}: after epoch", str(found["epoch"])], ["  accuracy there (%)", f"{found['reached']:.2f}"],
                 ["  seconds of training", f"{found['training_s']:.1f}"],
                 ["  seconds with evaluations and checkpoints", f"{found['with_evaluations_s']:.0f}"]]  # fmt: skip
    rows += [["all epochs, seconds of training", f"{found['whole_training_s']:.1f}"],
             ["all epochs, seconds with evaluations and checkpoints", f"{found['whole_with_evaluations_s']:.0f}"]]  # fmt: skip
    if found["best"] is not None:
        rows.append(["accuracy, best and last (%)", f"{found['best']:.2f}, {found['last']:.2f}"])
    return table([f"{found['epochs']} epochs of {found['img_per_epoch']:,} images, batch {found['batch']}", ""], rows)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Images a second of a training, and seconds to an accuracy.")
    parser.add_argument("--cfg", type=Path, default=ROOT / "configs/cifar100/resnet18.yaml", help="what to train")
    parser.add_argument("--top1", type=float, default=75.0, help="the accuracy, in percent (75)")
    parser.add_argument("--out", type=Path, help="folder of the run (runs/time_to_accuracy/<name of the file>)")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="further options of the run")
    given = parser.parse_args()
    out = given.out or Path("runs/time_to_accuracy") / given.cfg.stem
    run(given.cfg, out, given.options)
    found = report(out, given.top1)
    print(setting("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"\n{given.cfg} {' '.join(given.options)}\n{shown(found)}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
