"""Runs whose training set lacks classes that the test part has."""

import math
from pathlib import Path
from typing import Any

import pytest
import simplejson
from running import DIGITS, call, result  # type: ignore[import-not-found]

from pycls.engine.checkpoint.state_file import load_weights

# all zeros are said to be ones, and all fives sixes
RUN = [*DIGITS, "OPTIM.MAX_EPOCH", "1", "OPTIM.BASE_LR", "0.1", "TENSORBOARD", "False", "DATA.NOISE.KIND", "pairs",
       "DATA.NOISE.RATE", "1.0", "DATA.NOISE.PAIRS", "[[0, 1], [5, 6]]"]  # fmt: skip
NAMED = "2 of 10 classes have no training images: 0, 5; labels count from 0"


def numbers(found: Any) -> list[float]:
    if isinstance(found, dict):
        return [number for value in found.values() for number in numbers(value)]
    if isinstance(found, list):
        return [number for value in found for number in numbers(value)]
    return [found] if isinstance(found, float) else []


@pytest.mark.parametrize(("head", "more"), [
    ("balanced_softmax", ["TRAIN.SAMPLER", "class_aware", "STAGE2.METHOD", "ncm"]),
    ("balanced_softmax", ["STAGE2.METHOD", "tau_norm", "TRAIN.LABEL_SMOOTHING", "0.1"]),
    ("logit_adjustment", ["HEAD.POST_HOC", "True", "TRAIN.SAMPLER", "square_root"]),
])  # fmt: skip
def test_an_absent_class_is_named_once_and_never_predicted(tmp_path: Path, head: str, more: list[str]) -> None:
    ended = call(*RUN, "HEAD.NAME", head, *more, "OUT_DIR", tmp_path)
    assert ended.code == 0, ended.err
    assert (ended.out + ended.err).count(NAMED) == 1
    found = result(tmp_path)
    for tested in [found["test"], *([found["stage1"]["test"]] if "stage1" in found else [])]:
        assert tested["class_samples"][0] > 0 == tested["class_predictions"][0] == tested["class_predictions"][5]
    assert all(math.isfinite(number) for number in numbers(found))
    assert all(value.isfinite().all() for value in load_weights(tmp_path / "model.safetensors")[0].values())
    tested = call("--mode", "test", "--cfg", tmp_path / "config.yaml", "OUT_DIR", tmp_path)
    assert tested.code == 0, tested.err
    again = simplejson.loads((tmp_path / "test.json").read_text())["test"]
    assert {key: again[key] for key in found["test"]} == found["test"], "the weights know which classes were absent"


def test_ldam_re_weighted_is_finite_without_them(tmp_path: Path) -> None:
    more = ["HEAD.NAME", "ldam", "HEAD.DRW_EPOCH", "1", "OPTIM.MAX_EPOCH", "2", "TRAIN.SAMPLER", "class_balanced",
            "STAGE2.METHOD", "retrain", "STAGE2.HEAD.NAME", "softmax", "STAGE2.OPTIM.MAX_EPOCH", "1",
            "STAGE2.TRAIN.SAMPLER", "class_balanced"]  # fmt: skip
    ended = call(*RUN, *more, "OUT_DIR", tmp_path)
    assert ended.code == 0, ended.err
    assert (ended.out + ended.err).count(NAMED) == 1
    found = result(tmp_path)
    assert len(found["history"]) == 1 and len(found["stage1"]["history"]) == 2
    assert all(math.isfinite(number) for number in numbers(found))
