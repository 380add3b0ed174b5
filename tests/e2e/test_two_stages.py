"""Runs of two stages: the backbone stays as it is, and the head is the method's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from running import DIGITS, call, newest, result  # type: ignore[import-not-found]

from pycls import build, config
from pycls.engine.checkpoint.state_file import load_state, load_weights

RUN = [*DIGITS, "OPTIM.MAX_EPOCH", "2", "OPTIM.BASE_LR", "0.1", "DATA.LONG_TAIL.PROFILE", "exponential",
       "DATA.LONG_TAIL.IMBALANCE", "5", "TENSORBOARD", "False"]  # fmt: skip
RETRAINED = ["STAGE2.OPTIM.MAX_EPOCH", "2", "STAGE2.OPTIM.BASE_LR", "0.05"]
METHODS = {
    "retrain": ["STAGE2.HEAD.NAME", "cosloss", "STAGE2.TRAIN.SAMPLER", "class_aware", *RETRAINED],
    "lws": ["STAGE2.TRAIN.SAMPLER", "class_balanced", *RETRAINED],
    "tau_norm": [],
    "ncm": [],
}


def stages(folder: Path, method: str, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights that the first stage chose, and those of the end."""
    ended = call(*RUN, "STAGE2.METHOD", method, *METHODS[method], *more, "OUT_DIR", folder)
    assert ended.code == 0, ended.err
    assert f"second stage ({method})" in ended.out
    first = load_state(folder / "checkpoints/best.safetensors")["model"]
    last, _ = load_weights(folder / "model.safetensors")
    assert all(torch.equal(last[name], value) for name, value in first.items() if name.startswith("backbone."))
    assert {"test", "history"} <= result(folder)["stage1"].keys()
    return first, last


@pytest.mark.parametrize("method", ["retrain", "lws"])
def test_a_head_is_trained_on_the_frozen_backbone(tmp_path: Path, method: str) -> None:
    first, last = stages(tmp_path, method)
    assert len(result(tmp_path)["history"]) == 2
    assert set(newest(tmp_path / "stage2")["optimizer"]) == {n for n in last if n.startswith("head.")} - {"head.steps"} - (
        {"head.similarity.weight", "head.similarity.bias"} if method == "lws" else set()
    )
    if method == "lws":
        for name in ("weight", "bias"):
            assert torch.equal(last[f"head.similarity.{name}"], first[f"head.similarity.{name}"])
        assert (last["head.similarity.factor"] != 1).all()
    else:
        assert "head.similarity.scaling.raw" in last, "CosLoss learns its scale"
    again = call(*RUN, "STAGE2.METHOD", method, *METHODS[method], "OUT_DIR", tmp_path)
    assert again.code == 0 and "is finished" in again.out
    tested = call("--mode", "test", "--cfg", tmp_path / "config.yaml", "OUT_DIR", tmp_path)
    assert tested.code == 0, tested.err
    assert f"{result(tmp_path)['test']['top1_errors']} wrong" in tested.out.replace("(", "").replace(")", "")


def test_tau_norm(tmp_path: Path) -> None:
    first, last = stages(tmp_path, "tau_norm", "STAGE2.TAU", "0.7")
    weight = first["head.similarity.weight"].double()
    wanted = torch.stack([row / row.square().sum().sqrt() ** 0.7 for row in weight])
    torch.testing.assert_close(last["head.similarity.weight"].double(), wanted, rtol=1e-5, atol=1e-7)
    assert "head.similarity.bias" not in last and result(tmp_path)["history"] == []


def test_nearest_class_mean(tmp_path: Path) -> None:
    _, last = stages(tmp_path, "ncm")
    cfg = config.last_stage(config.load(str(tmp_path / "config.yaml")))
    dataset, _ = build.build_training_set(cfg)
    model = build.build_model(cfg, dataset.channels, 8, 10)
    model.load_state_dict(last)
    pixels = dataset.images.double() / 255
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (dataset.mean, dataset.std))
    with torch.no_grad():
        features = model.eval().features(((pixels - mean) / std).float()).double()
    wanted = torch.stack([features[dataset.labels == k].mean(dim=0) for k in range(10)])
    torch.testing.assert_close(last["head.similarity.weight"].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    (["STAGE2.METHOD", "lws", "HEAD.NAME", "cosface"], "lws starts from a linear head, and lenet5 with cosface head is"),
    (["STAGE2.METHOD", "lws", "STAGE2.HEAD.NAME", "softmax"], "STAGE2.HEAD.NAME has no effect: STAGE2.METHOD is lws"),
    (["STAGE2.METHOD", "ncm", "STAGE2.OPTIM.BASE_LR", "1"], "STAGE2.OPTIM.BASE_LR has no effect: STAGE2.METHOD is ncm"),
    (["STAGE2.OPTIM.BASE_LR", "1"], "STAGE2.OPTIM.BASE_LR has no effect: STAGE2.METHOD is none"),
    (["STAGE2.METHOD", "retrain", "STAGE2.OPTIM.BASE_LRR", "1"], "unknown option STAGE2.OPTIM.BASE_LRR"),
    (["STAGE2.METHOD", "retrain", "STAGE2.MODEL.TYPE", "resnet"], "unknown option STAGE2.MODEL.TYPE of the second stage"),
    (["STAGE2.METHOD", "retrain", "STAGE2.OPTIM.STEPS", "[3]"], "STAGE2.OPTIM.STEPS has no effect"),
    (["STAGE2.METHOD", "retrain", "STAGE2.TRAIN.BATCH_SIZE", "100000"], "fewer than one batch of 100000"),
    (["STAGE2.METHOD", "tau_norm", "TRAIN.EVAL_SPLIT", "test"], "tau is chosen on the val part"),
    (["STAGE2.METHOD", "retrain", "STAGE2.TAU", "0.5"], "STAGE2.TAU has no effect"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_the_first_stage(tmp_path: Path, options: list[str], message: str) -> None:
    ended = call(*RUN, *options, "OUT_DIR", tmp_path / "run")
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1, ended.err
    assert not (tmp_path / "run/checkpoints").exists()
