"""Every option of the engine trains, evaluates and saves: one or two epochs of digits each."""

import math
from pathlib import Path

import pytest
import torch
from running import DIGITS, assert_same_run, call, newest, result  # type: ignore[import-not-found]

FAST = ["TENSORBOARD", "False", "OPTIM.MAX_EPOCH", "1"]

OPTIONS = {
    "no epoch": "OPTIM.MAX_EPOCH 0",
    "no epoch, moving average": "OPTIM.MAX_EPOCH 0 OPTIM.EMA_UPDATE_PERIOD 1",
    "no evaluation, plain sgd": "TRAIN.EVAL_SPLIT none OPTIM.MOMENTUM 0.0 OPTIM.WEIGHT_DECAY 0.0 OPTIM.WARMUP_EPOCHS 0.0",
    "evaluation on test, channels first": "TRAIN.EVAL_SPLIT test MODEL.CHANNELS_LAST False TRAIN.LABEL_SMOOTHING 0.1",
    "trainval": "TRAIN.SPLIT trainval TRAIN.EVAL_SPLIT none",
    "moving average, steps": "OPTIM.EMA_UPDATE_PERIOD 2 OPTIM.EMA_ALPHA 1e-3 OPTIM.LR_POLICY steps "
                             "OPTIM.STEPS [1] OPTIM.MAX_EPOCH 2",
    "precise batch norm": "MODEL.TYPE lenetspp BN.USE_PRECISE_STATS True BN.NUM_SAMPLES_PRECISE 100",
    "adam, mixup and cutmix": "OPTIM.OPTIMIZER adam OPTIM.BASE_LR 1e-3 TRAIN.MIXUP_ALPHA 0.4 TRAIN.CUTMIX_ALPHA 1.0",
    "accumulation and clipping, lin": "TRAIN.ACCUM_STEPS 4 OPTIM.CLIP_NORM 0.5 OPTIM.LR_POLICY lin OPTIM.MIN_LR 0.1",
    "bf16, head by parts": "TRAIN.MIXED_PRECISION bf16 HEAD.SIMILARITY.NAME cosine HEAD.MARGIN.NAME additive_cosine "
                           "HEAD.LR_MULT 2.0 HEAD.WEIGHT_DECAY 0",
    "fp16": "TRAIN.MIXED_PRECISION fp16 OPTIM.CLIP_NORM 1.0",
    "adamw, long epochs between": "OPTIM.OPTIMIZER adamw OPTIM.BASE_LR 1e-3 OPTIM.MAX_EPOCH 2 OPTIM.LR_POLICY exp "
                                  "TRAIN.EVAL_PERIOD 5 TRAIN.CHECKPOINT_PERIOD 5 LOG_PERIOD 100",
}


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in newest(folder)["model"].items() if name.endswith(("weight", "bias"))}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_option_trains(tmp_path: Path, options: str) -> None:
    ended = call(*DIGITS, *FAST, *options.split(), "OUT_DIR", tmp_path / "run")
    assert ended.code == 0 and "tested on" in ended.out, ended.err
    found, state = result(tmp_path / "run"), newest(tmp_path / "run")
    epochs = state["epoch"]
    assert found["test"]["samples"] == 360 and [row["epoch"] for row in found["history"]] == list(range(1, epochs + 1))
    weights = {"model": state["model"], **({"ema": state["ema"]} if "EMA" in options else {})}
    assert all(w.isfinite().all() for tree in weights.values() for w in tree.values())
    assert all(math.isfinite(row["train"]["loss"]) for row in found["history"])
    chosen = "val" if epochs and "EVAL_SPLIT" not in options else None
    assert found["chosen_on"] == chosen and (tmp_path / "run/checkpoints/best.safetensors").exists() == bool(chosen)


@pytest.mark.slow
def test_compiled_model_trains_as_the_plain_one(tmp_path: Path) -> None:
    models = []
    for compiled in ("False", "True", "reduce-overhead"):
        ended = call(*DIGITS, *FAST, "MODEL.COMPILE", compiled, "OUT_DIR", tmp_path / compiled)
        assert ended.code == 0, ended.err
        models.append(parameters(tmp_path / compiled))
    for name, weight in models[0].items():
        for model in models[1:]:
            torch.testing.assert_close(model[name], weight, rtol=1e-3, atol=1e-4)


EFFNET = ["MODEL.TYPE", "effnet", "EN.STEM_W", 16, "EN.DEPTHS", "[1, 2]", "EN.WIDTHS", "[16, 16]", "EN.EXP_RATIOS", "[1, 4]",
          "EN.STRIDES", "[1, 2]", "EN.KERNELS", "[3, 3]", "EN.HEAD_W", 32, "EN.DC_RATIO", 0.3,
          "OPTIM.EMA_UPDATE_PERIOD", 2]  # fmt: skip


def test_activations_computed_again_change_nothing(tmp_path: Path) -> None:
    """Not a bit, with drop connect, batch norm and a moving average; also when a run goes on without."""
    words = [*DIGITS, *FAST, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_KEEP", 9, *EFFNET]
    for name in ("plain", "again"):
        ended = call(*words, "MODEL.ACTIVATION_CHECKPOINTING", name == "again", "OUT_DIR", tmp_path / name)
        assert ended.code == 0, ended.err
    assert_same_run(tmp_path / "again", tmp_path / "plain")
    (tmp_path / "again/result.json").unlink()
    max((tmp_path / "again/checkpoints").glob("step_*")).unlink()
    ended = call(*words, "OUT_DIR", tmp_path / "again")
    assert ended.code == 0 and "continuing from epoch 2" in ended.out, ended
    assert_same_run(tmp_path / "again", tmp_path / "plain")


def test_accumulation_is_the_whole_batch_in_parts(tmp_path: Path) -> None:
    models = []
    for parts in (1, 4):
        ended = call(*DIGITS, *FAST, "TRAIN.ACCUM_STEPS", parts, "OUT_DIR", tmp_path / str(parts))
        assert ended.code == 0, ended.err
        models.append(parameters(tmp_path / str(parts)))
    for name, weight in models[0].items():
        torch.testing.assert_close(models[1][name], weight, rtol=1e-4, atol=1e-5)


def test_a_head_frozen_by_a_learning_rate_of_0(tmp_path: Path) -> None:
    first = call(*DIGITS, *FAST, "OPTIM.MAX_EPOCH", 0, "OUT_DIR", tmp_path / "a")
    second = call(*DIGITS, *FAST, "HEAD.LR_MULT", 0, "OUT_DIR", tmp_path / "b")
    assert first.code == second.code == 0
    before, after = parameters(tmp_path / "a"), parameters(tmp_path / "b")
    assert all(torch.equal(before[name], after[name]) == name.startswith("head.") for name in before)


def test_weights_to_start_from(trained: Path, tmp_path: Path) -> None:
    weights = trained / "model.safetensors"
    ended = call(*DIGITS, *FAST, "OPTIM.MAX_EPOCH", 0, "TRAIN.WEIGHTS", weights, "OUT_DIR", tmp_path)
    assert ended.code == 0
    assert result(tmp_path)["test"] == result(trained)["test"]


def test_another_head_on_the_backbone_that_was_trained(trained: Path, tmp_path: Path) -> None:
    words = ["HEAD.NAME", "cosface", "TRAIN.WEIGHTS", trained / "model.safetensors", "OUT_DIR", tmp_path]
    ended = call(*DIGITS, *FAST, "OPTIM.MAX_EPOCH", 0, *words)
    assert ended.code == 0 and "head re-initialised (different head type)" in ended.out
    before, after = parameters(trained), parameters(tmp_path)
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("backbone."))
