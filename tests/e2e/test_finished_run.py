"""What a finished run is, says and holds, and what may be done with its folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejson
import torch
from PIL import Image
from running import DIGITS, call, newest, result, snapshot  # type: ignore[import-not-found]
from safetensors.torch import load_file

import pycls
from pycls.data.sets.digits import digits
from pycls.runtime.files import RunLock
from pycls.runtime.log import read_json_stats

RUN = [*DIGITS, "OPTIM.MAX_EPOCH", "3"]


def test_what_is_printed_is_for_people(trained: Path) -> None:
    printed = (trained.parent / "printed.txt").read_text()
    lines = printed.splitlines()
    assert "json_stats" not in printed and "lenet5 with softmax head on digits: 1257 training images" in lines[0]
    assert [line.split(":")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert "hardest classes" in printed and lines[-1] == f"in {trained}: model.safetensors, result.json, curves.png"
    assert len(lines) < 20


def test_what_is_written_is_for_programs(trained: Path) -> None:
    log = trained / "stdout.log"
    assert [row["iter"] for row in read_json_stats(log, "train_iter")] == ["10/19", "19/19"] * 3
    history, found = result(trained)["history"], read_json_stats(log, "val_epoch")
    assert [row["top1_errors"] for row in found] == [row["model"]["top1_errors"] for row in history]
    assert read_json_stats(log, "test_epoch")[0]["top1_errors"] == result(trained)["test"]["top1_errors"]


def test_the_same_command_again_says_so_and_does_nothing(trained: Path) -> None:
    before = snapshot(trained)
    ended = call(*RUN, "OUT_DIR", trained)
    assert ended.code == 0 and "is finished" in ended.out and "tested on" in ended.out and ended.err == ""
    assert snapshot(trained) == before


def test_the_dumped_configuration_is_the_same_run(trained: Path) -> None:
    ended = call("--cfg", trained / "config.yaml")
    assert ended.code == 0 and "is finished" in ended.out


def test_another_configuration_is_refused_with_the_difference(trained: Path) -> None:
    before = snapshot(trained)
    ended = call(*RUN, "OUT_DIR", trained, "OPTIM.BASE_LR", 0.1, "HEAD.NAME", "cosface")
    assert ended.code == 2 and ended.out == "" and ended.err.count("\n") == 1
    assert "OPTIM.BASE_LR: 0.05 -> 0.1" in ended.err and "HEAD.NAME: 'softmax' -> 'cosface'" in ended.err
    assert "OUT_DIR" in ended.err and snapshot(trained) == before


def test_a_run_that_may_not_be_continued_is_left_alone(trained: Path) -> None:
    ended = call(*RUN, "OUT_DIR", trained, "TRAIN.AUTO_RESUME", False)
    assert ended.code == 2 and "TRAIN.AUTO_RESUME" in ended.err


def test_options_that_do_not_change_the_result_may_differ(trained: Path) -> None:
    ended = call(*RUN, "OUT_DIR", trained, "LOG_PERIOD", 3, "TEST.BATCH_SIZE", 7, "TRAIN.CHECKPOINT_KEEP", 5)
    assert ended.code == 0 and "is finished" in ended.out


def test_two_runs_cannot_use_one_folder_at_once(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        ended = call(*RUN, "OUT_DIR", tmp_path)
    assert ended.code == 2 and "is in use by process" in ended.err and snapshot(tmp_path) == {}


def test_checkpoints_kept_are_the_newest_and_the_best(trained: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == [
        "best.safetensors", "step_000000038.safetensors", "step_000000057.safetensors"]  # fmt: skip
    errors = [row["model"]["top1_err"] for row in result(trained)["history"]]
    best = min(range(3), key=lambda k: errors[k])
    assert result(trained)["epoch"] == best + 1 and result(trained)["chosen_on"] == "val"
    ended = call(*RUN, "OUT_DIR", tmp_path, "TRAIN.CHECKPOINT_KEEP", 1, "TRAIN.CHECKPOINT_STEPS", 7, "TENSORBOARD", False)
    assert ended.code == 0
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.safetensors", "step_000000057.safetensors"]


def test_weights_are_any_tools(trained: Path) -> None:
    weights = load_file(trained / "model.safetensors")
    state = newest(trained)  # the best epoch of this run is the last
    assert weights.keys() == state["model"].keys()
    assert all(torch.equal(weights[name], state["model"][name]) for name in weights)


@pytest.mark.parametrize("weights", ["", "model.safetensors", "checkpoints/best.safetensors"])
def test_testing_gives_what_training_ended_with(trained: Path, tmp_path: Path, weights: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    words = ["TEST.WEIGHTS", folder / weights] if weights else []
    ended = call("--mode", "test", *RUN, "OUT_DIR", folder, *words)
    assert ended.code == 0 and "tested on" in ended.out, ended.err
    assert simplejson.loads((folder / "test.json").read_text())["test"] == result(trained)["test"]


def test_testing_on_another_part(trained: Path, tmp_path: Path) -> None:
    weights = trained / "model.safetensors"
    ended = call("--mode", "test", *RUN, "TEST.WEIGHTS", weights, "TEST.SPLIT", "val", "OUT_DIR", tmp_path)
    assert ended.code == 0 and "digits val, 180 images" in ended.out
    history = result(trained)["history"]
    assert f"({history[-1]['model']['top1_errors']} wrong)" in ended.out


def test_curves_are_drawn(trained: Path) -> None:
    with Image.open(trained / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 800 and len(set(picture.convert("RGB").getdata())) > 50


def test_tensorboard_has_the_curves(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [10, 19, 29, 38, 48, 57]
    wanted = [row["model"]["top1_err"] for row in result(trained)["history"]]
    assert [event.value for event in board.Scalars("val/top1_err")] == pytest.approx(wanted)
    assert [event.step for event in board.Scalars("val/top1_err")] == [19, 38, 57]


def test_features_of_two_dimensions_are_drawn(tmp_path: Path) -> None:
    ended = call(*DIGITS, "MODEL.TYPE", "lenetspp", "HEAD.NAME", "rbf_softmax", "OPTIM.MAX_EPOCH", 1, "OPTIM.BASE_LR", 0.01,
                 "OUT_DIR", tmp_path, "TENSORBOARD", False)  # fmt: skip
    assert ended.code == 0 and "features.png" in ended.out, ended.err
    with Image.open(tmp_path / "features.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 100


def test_info_describes(tmp_path: Path) -> None:
    ended = call("--mode", "info", *RUN, "OUT_DIR", tmp_path / "none")
    assert ended.code == 0 and not (tmp_path / "none").exists()
    assert "BASE_LR: 0.05" in ended.out and "Classifier(" in ended.out
    assert "images 1 x 8 x 8" in ended.out and "params 131,080" in ended.out and "flops" in ended.out


def test_info_needs_no_data_of_a_known_set(tmp_path: Path) -> None:
    options = ("MODEL.TYPE", "resnet", "MODEL.DEPTH", 20, "TRAIN.DATASET", "cifar100", "DATA.ROOT", tmp_path)
    ended = call("--mode", "info", *options)
    assert ended.code == 0 and "images 3 x 32 x 32" in ended.out and "classes 100" in ended.out, ended


def test_time_measures(tmp_path: Path) -> None:
    ended = call("--mode", "time", *RUN, "OUT_DIR", tmp_path, "PREC_TIME.NUM_ITER", 2, "PREC_TIME.WARMUP_ITER", 1)
    assert ended.code == 0, ended.err
    for line in ("test step (forward)", "train step", "loader", "loader and train step", "is what limits training"):
        assert line in ended.out
    assert list(snapshot(tmp_path)) == ["time.json"] and "GPU" not in ended.out


def test_the_error_is_the_models(trained: Path) -> None:
    """The counts, recomputed here from the exported weights and the data alone."""
    model = pycls.create_model("lenet5", num_classes=10, head="softmax", in_channels=1, image_size=8)
    model.load_state_dict(load_file(trained / "model.safetensors"))
    data = digits("", "test")
    images = (data.images.float() / 255 - data.mean[0]) / data.std[0]
    with torch.no_grad():
        predicted = model.eval()(images).logits.argmax(1)
    assert int((predicted != data.labels).sum()) == result(trained)["test"]["top1_errors"]
