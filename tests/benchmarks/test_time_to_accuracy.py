"""Seconds to an accuracy, from a run's own files."""

import json
import os
import sys
from pathlib import Path

import forked
import pytest
import time_to_accuracy as script

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs/digits/lenet5_softmax.yaml"

LOG = """\
2026-01-01 10:00:00 resnet18 with softmax head on cifar100: 50000 training images
2026-01-01 10:00:03 json_stats: {"_type": "train_iter", "epoch": "1/3", "img_per_s": 40.0, "iter": "2/3"}
2026-01-01 10:00:04 json_stats: {"_type": "train_iter", "epoch": "1/3", "img_per_s": 80.0, "iter": "3/3"}
2026-01-01 10:00:09 json_stats: {"_type": "train_epoch", "epoch": 1}
2026-01-01 10:00:12 json_stats: {"_type": "train_iter", "epoch": "2/3", "img_per_s": 80.0, "iter": "2/3"}
2026-01-01 10:00:13 json_stats: {"_type": "train_iter", "epoch": "2/3", "img_per_s": 80.0, "iter": "3/3"}
2026-01-01 10:00:13 json_stats: {"_type": "train_epoch", "epoch": 2}
2026-01-01 10:00:15 json_stats: {"_type": "train_iter", "epoch": "3/3", "img_per_s": 80.0, "iter": "3/3"}
2026-01-01 10:01:00 json_stats: {"_type": "train_epoch", "epoch": 3}
2026-01-01 10:02:00 json_stats: {"_type": "test_epoch", "top1_err": 20.0}
"""
"""Three epochs of three steps."""


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run of 40 images a step, evaluated after the first and the third epoch."""
    (tmp_path / "stdout.log").write_text(LOG, encoding="utf-8")
    (tmp_path / "config.yaml").write_text("TRAIN: {BATCH_SIZE: 40, EVAL_SPLIT: test}\n", encoding="utf-8")
    history = [{"epoch": 1, "model": {"top1_err": 60.0}, "ema": {"top1_err": 90.0}}, {"epoch": 2},
               {"epoch": 3, "model": {"top1_err": 30.0}, "ema": {"top1_err": 25.0}}]  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps({"history": history}), encoding="utf-8")
    return tmp_path


def test_seconds_with_evaluations_and_without(finished: Path) -> None:
    found = script.report(finished, 75.0)
    assert (found["epoch"], found["reached"]) == (3, 75.0)
    assert found["training_s"] == pytest.approx(2.0 + 0.5 + 1.5 + 1.5) and found["first_epoch_s"] == pytest.approx(2.5)
    assert found["with_evaluations_s"] == 60.0 and found["img_per_s"] == pytest.approx(80.0)
    early = script.report(finished, 40.0)
    assert (early["epoch"], early["training_s"], early["with_evaluations_s"]) == (1, pytest.approx(2.5), 9.0)
    assert "test: after epoch" in script.shown(found)


def test_an_accuracy_that_was_not_reached(finished: Path) -> None:
    found = script.report(finished, 75.1)
    assert found["epoch"] is None and found["training_s"] is None and found["best"] == 75.0
    assert "75.1 % of test: not reached" in script.shown(found)


def test_a_continued_run_is_refused(finished: Path) -> None:
    with (finished / "stdout.log").open("a", encoding="utf-8") as file:
        file.write("2026-01-02 10:00:00 continuing from epoch 2, step 0 of 3\n")
    with pytest.raises(SystemExit, match="stopped and continued"):
        script.report(finished, 75.0)


@pytest.mark.extra
def test_the_command(tmp_path: Path) -> None:
    """On digits; a finished run is read again for another accuracy."""
    command = [sys.executable, str(ROOT / "benchmarks/time_to_accuracy.py"), "--cfg", str(DIGITS),
               "--out", str(tmp_path / "run"), "--json", str(tmp_path / "figures.json")]  # fmt: skip
    options = ["OPTIM.MAX_EPOCH", "2", "NUM_THREADS", "1", "TENSORBOARD", "False", "DEVICE", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for top1, epoch in (("5", 1), ("100", None)):
        done = forked.run([*command, "--top1", top1, *options], env=environment)
        assert done.returncode == 0, done.stderr
        figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
        assert figures["epoch"] == epoch and figures["img_per_s"] > 0 and figures["img_per_epoch"] == 19 * 64
        assert "2 epochs of 1,216 images, batch 64" in done.stdout
