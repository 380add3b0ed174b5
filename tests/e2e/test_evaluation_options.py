"""Groups, tables, several views and other sizes, through the command line."""

import csv
from pathlib import Path

import pytest
import simplejson
from running import DIGITS, call, result

SHORT = ["OPTIM.MAX_EPOCH", 1, "TRAIN.BATCH_SIZE", 32, "TENSORBOARD", False]


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_long_tail_is_reported_by_group_and_in_tables(tmp_path: Path) -> None:
    out = tmp_path / "run"
    tail = ["DATA.LONG_TAIL.PROFILE", "exponential", "DATA.LONG_TAIL.IMBALANCE", 20]
    done = call(*DIGITS, *SHORT, *tail, "TEST.TABLES", True, "TEST.CROPS", 2, "OUT_DIR", out)
    assert done.code == 0, done.err
    test = result(out)["test"]
    groups = test["groups"]
    assert sum(group["classes"] for group in groups.values()) == 10 and groups["few"]["classes"] > 0
    log = (out / "stdout.log").read_text()
    assert all(f"{name} shots" in log for name in groups) and "result_predictions.csv" in log
    by_class = rows(out / "result_classes.csv")[1:]
    few = [float(row[5]) for row in by_class if int(row[2]) < 20]
    assert groups["few"]["err"] == pytest.approx(sum(few) / len(few), abs=1e-3)
    predictions = rows(out / "result_predictions.csv")[1:]
    assert len(predictions) == test["samples"]
    assert sum(row[2] != row[3] for row in predictions) == test["top1_errors"]

    done = call("--mode", "test", "--cfg", out / "config.yaml")
    assert done.code == 0, done.err
    again = simplejson.loads((out / "test.json").read_text())["test"]
    assert again["groups"] == groups and again["top1_errors"] == test["top1_errors"]
    assert rows(out / "test_confusion.csv") == rows(out / "result_confusion.csv")


def test_ten_crops_and_another_size_in_evaluation(tmp_path: Path) -> None:
    net = ["--cfg", "configs/digits/lenet5_softmax.yaml", "DEVICE", "cpu", "NUM_THREADS", 1, *SHORT]
    done = call(*net, "TRAIN.IM_SIZE", 16, "TEST.IM_SIZE", 18, "TEST.CROPS", 10, "OUT_DIR", tmp_path / "ten")
    assert done.code == 0 and result(tmp_path / "ten")["test"]["samples"] == 360, done.err
    done = call(*net, "TEST.CROPS", 10, "OUT_DIR", tmp_path / "a")
    assert done.code == 2 and "TEST.CROPS 10 needs a TEST.IM_SIZE above the crops' side, 8" in done.err
    done = call(*net, "TRAIN.IM_SIZES", "[[0, 12]]", "TRAIN.IM_SIZE", 16, "OUT_DIR", tmp_path / "b")
    assert done.code == 2 and "TRAIN.IM_SIZES: lenet5 takes images of one size" in done.err
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").glob("*.yaml"))


def test_augmented_training_through_the_command_line(tmp_path: Path) -> None:
    """Progressive and FixRes sizes of a net that takes any, repeated augmentation, a policy; a wrong spelling is one line."""
    net = ["MODEL.TYPE", "resnet", "MODEL.DEPTH", 8, "TRAIN.DATASET", "digits", "DEVICE", "cpu", "NUM_THREADS", 1, *SHORT]
    many = ["TRAIN.AUGMENT", "rand-m9-mstd0.5-inc1", "TRAIN.ERASE_PROB", 0.2, "TRAIN.COLOR_JITTER", 0.4, "TRAIN.REPEATS", 2,
            "TRAIN.IM_SIZES", "[[0, 8]]", "TRAIN.IM_SIZE", 12, "TEST.CROP_SIZE", 16, "TRAIN.IMAGES_PER_CLASS", 8]  # fmt: skip
    done = call(*net, *many, "OUT_DIR", tmp_path / "run")
    assert done.code == 0, done.err
    done = call(*net, "TRAIN.AUGMENT", "RandAugment", "OUT_DIR", tmp_path / "wrong")
    assert done.code == 2 and "'RandAugment' needs a magnitude from 0 to 1" in done.err and done.err.count("\n") == 1
