"""Whatever is wrong with the input: one clear line, the right exit code, and nothing overwritten."""

import os
import pickle
import re
from pathlib import Path

import pytest
from running import DIGITS, Ended, call, newest, result, snapshot, write_mnist  # type: ignore[import-not-found]

RUN = [*DIGITS, "OPTIM.MAX_EPOCH", "3"]
YAML = """\
MODEL:
  TYPE: lenet5
OPTIM:
  BASE_LR: 0.05
  MAX_EPOCH: 1
"""


def assert_refused(ended: Ended, *words: str, code: int = 2) -> None:
    """One line on standard error that holds these words, and nothing else."""
    assert ended.code == code, ended
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1 and "Traceback" not in ended.err, ended.err
    for word in words:
        assert word in ended.err, ended.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("OPTIM.BASE_LRR 1", ["unknown option OPTIM.BASE_LRR (override)", "OPTIM.BASE_LR?"]),
        ("OPTIM.BASE_LR fast", ["override OPTIM.BASE_LR", "fast"]),
        ("OPTIM.MAX_EPOCH 1.5", ["OPTIM.MAX_EPOCH", "1.5"]),
        ("MODEL.NUM_CLASSES 7", ["NUM_CLASSES", "7", "at least 10"]),
        ("NUM_PROCS 3", ["TRAIN.BATCH_SIZE", "64", "NUM_PROCS 3", "66"]),
        ("TRAIN.ACCUM_STEPS 7", ["TRAIN.BATCH_SIZE", "TRAIN.ACCUM_STEPS 7"]),
        ("TRAIN.BATCH_SIZE 2000", ["1257", "2000"]),
        ("TEST.TOP_K 11", ["TEST.TOP_K", "at most 10", "11"]),
        ("TRAIN.CROP_PADDING 8", ["CROP_PADDING", "below 8"]),
        ("TRAIN.REPEATS 2000", ["REPEATS", "at most 1257"]),
        ("DATA.LONG_TAIL.PROFILE pareto DATA.LONG_TAIL.LARGEST 999", ["DATA.LONG_TAIL.LARGEST", "at most", "999"]),
        ("HEAD.NAME cosfase", ["'cosfase'", "cosface"]),
        ("MODEL.TYPE lenet6", ["lenet6", "lenet5"]),
        ("TRAIN.DATASET digit", ["digit", "digits"]),
        ("HEAD.SIMILARITY.NAME rbf HEAD.MARGIN.NAME additive_cosine", ["margin", "additive_cosine", "cosine", "rbf"]),
        ("TRAIN.SPLIT trainval", ["TRAIN.EVAL_SPLIT"]),
        ("TRAIN.WEIGHTS none.safetensors", ["no such file: none.safetensors"]),
        ("TRAIN.DATASET mnist DATA.DOWNLOAD False DATA.ROOT nowhere", ["mnist", "nowhere", "train-images-idx3-ubyte"]),
        ("TEST.DATASET mnist DATA.DOWNLOAD False DATA.ROOT nowhere", ["mnist", "nowhere", "t10k-images-idx3-ubyte"]),
        ("OPTIM.OPTIMIZER adam OPTIM.BETA1 1.0", ["OPTIM", "1.0"]),
    ],
)  # fmt: skip
def test_wrong_option(tmp_path: Path, overrides: str, words: list[str]) -> None:
    assert_refused(call(*RUN, *overrides.split(), "OUT_DIR", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists() or snapshot(tmp_path / "run") == {}


def test_wrong_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(YAML.replace("BASE_LR", "BASE_RL"))
    assert_refused(call("--cfg", path), f"{path}:4: unknown option OPTIM.BASE_RL", "OPTIM.BASE_LR?")
    path.write_text(YAML.replace("0.05", "quick"))
    assert_refused(call("--cfg", path), f"{path}:4: OPTIM.BASE_LR", "quick")
    assert_refused(call("--cfg", tmp_path / "b.yaml"), "no such file")
    assert [p.name for p in tmp_path.iterdir()] == ["a.yaml"]


def test_after_a_mistake_the_corrected_command_works(tmp_path: Path) -> None:
    words = [*DIGITS, "OPTIM.MAX_EPOCH", 1, "OUT_DIR", tmp_path, "TENSORBOARD", False]
    assert_refused(call(*words, "MODEL.NUM_CLASSES", 3))
    assert_refused(call(*words, "OPTIM.OPTIMIZER", "adam", "OPTIM.BETA1", 1.0))
    assert call(*words).code == 0


def test_truncated_idx(tmp_path: Path) -> None:
    write_mnist(tmp_path, 100, 100)
    file = tmp_path / "MNIST/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    words = ["TRAIN.DATASET", "mnist", "MNIST.VAL_SIZE", 20, "DATA.ROOT", tmp_path, "OUT_DIR", tmp_path / "run"]
    assert_refused(call(*DIGITS, *words), str(file), "bytes")
    assert snapshot(tmp_path / "run") == {}


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/pycls-was-here",)


def test_cifar_pickle_that_would_run_code(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": _Evil(), "labels": [0]}, protocol=2))
    words = ["TRAIN.DATASET", "cifar10", "DATA.ROOT", tmp_path, "OUT_DIR", tmp_path / "run"]
    assert_refused(call(*DIGITS, *words), "cifar-10-batches-py", "system")
    assert not Path("/tmp/pycls-was-here").exists() and snapshot(tmp_path / "run") == {}


def test_output_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert_refused(call(*RUN, "OUT_DIR", tmp_path / "file"), str(tmp_path / "file"))
    assert_refused(call(*RUN, "OUT_DIR", tmp_path / "file/below"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
    if Path("/proc/self").exists():
        assert_refused(call(*RUN, "OUT_DIR", "/proc/run"), "/proc/run")


# --- damaged files


def damage(path: Path, kind: str) -> None:
    """Truncates or flips one bit, in a file that has no other name."""
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        data = data[: len(data) // 2]
    else:
        data[len(data) * 2 // 3] ^= 0x10
    path.unlink()  # best.safetensors may be the same file
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(copied: Path, trained: Path, kind: str) -> None:
    damage(copied / "checkpoints/step_000000057.safetensors", kind)
    ended = call(*RUN, "OUT_DIR", copied)
    assert ended.code == 0
    assert ended.err.count("error: ") == 1 and "step_000000057.safetensors is damaged" in ended.err, ended.err
    assert "going back to the checkpoint before it" in ended.err and "continuing from epoch 3, step 0 of 19" in ended.out
    assert result(copied) == result(trained) and newest(copied)["epoch"] == 3


def test_damaged_best_and_newest(copied: Path, trained: Path) -> None:
    """They are two names of one file where the best epoch was the last."""
    for name in ("step_000000057", "best"):
        damage(copied / f"checkpoints/{name}.safetensors", "flipped")
    ended = call(*RUN, "OUT_DIR", copied)
    assert ended.code == 0 and result(copied) == result(trained)


def test_damaged_best_only(copied: Path, trained: Path) -> None:
    damage(copied / "checkpoints/best.safetensors", "truncated")
    ended = call(*RUN, "OUT_DIR", copied)
    assert ended.code == 0 and result(copied) == result(trained), "the newest is the best one: it is linked again"


def test_all_checkpoints_damaged(copied: Path) -> None:
    for path in (copied / "checkpoints").glob("step*"):
        damage(path, "flipped")
    before = snapshot(copied / "checkpoints")
    ended = call(*RUN, "OUT_DIR", copied)
    assert ended.code == 2 and "every checkpoint in" in ended.err.splitlines()[-1] and "Traceback" not in ended.err
    assert snapshot(copied / "checkpoints") == before and not (copied / "result.json").exists()


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
@pytest.mark.parametrize("name", ["model.safetensors", "checkpoints/best.safetensors"])
def test_damaged_weights(copied: Path, kind: str, name: str) -> None:
    damage(copied / name, kind)
    words = ["TEST.WEIGHTS", copied / name, "OUT_DIR", copied / "tested"]
    assert_refused(call("--mode", "test", *RUN, *words), str(copied / name), "damaged")
    assert not (copied / "tested/test.json").exists()


def test_weights_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weights": _Evil()}))
    assert_refused(call("--mode", "test", *RUN, "TEST.WEIGHTS", tmp_path / "a.pt", "OUT_DIR", tmp_path), "a.pt")
    assert_refused(call("--mode", "test", *RUN, "OUT_DIR", tmp_path), "no checkpoint in")
    assert not Path("/tmp/pycls-was-here").exists()


@pytest.mark.parametrize("other", ["HEAD.NAME cosface", "MODEL.TYPE lenetspp", "MODEL.NUM_CLASSES 12"])
def test_weights_of_another_model(trained: Path, tmp_path: Path, other: str) -> None:
    weights = trained / "model.safetensors"
    ended = call("--mode", "test", *RUN, *other.split(), "TEST.WEIGHTS", weights, "OUT_DIR", tmp_path)
    assert_refused(ended, str(weights), "another model")
    assert snapshot(tmp_path) == {}


def test_training_does_not_start_from_another_backbone(trained: Path, tmp_path: Path) -> None:
    ended = call(*RUN, "MODEL.TYPE", "lenetspp", "TRAIN.WEIGHTS", trained / "model.safetensors", "OUT_DIR", tmp_path)
    assert_refused(ended, "another model")
    assert snapshot(tmp_path) == {}


def test_checkpoint_of_another_model_without_its_configuration(copied: Path) -> None:
    (copied / "config.yaml").unlink()
    before = snapshot(copied / "checkpoints")
    ended = call(*RUN, "MODEL.TYPE", "lenetspp", "OUT_DIR", copied)
    assert_refused(ended, "another model")
    assert snapshot(copied / "checkpoints") == before and not (copied / "config.yaml").exists()


# --- what goes wrong while a run is under way


@pytest.mark.parametrize("options", ["", "TRAIN.CHECKPOINT_STEPS 1", "LOG_PERIOD 1", "TRAIN.ACCUM_STEPS 2"])
def test_loss_that_is_no_number(tmp_path: Path, options: str) -> None:
    ended = call(*RUN, *options.split(), "OPTIM.BASE_LR", "1e30", "LOG_SAMPLES", True, "OUT_DIR", tmp_path)
    assert_refused(ended, "the loss is", "learning rate 1.473e+29", code=1)  # the warm-up's second step
    found = re.search(r"at step (\d+) \(epoch 1, step (\d+)/19\), .* Sample ids of the batch: ([\d ]+)$", ended.err.strip())
    assert found is not None and found[1] == "1" and found[2] == "2", ended.err
    lines = dict(line.split(": ") for line in (tmp_path / "samples_rank0.txt").read_text().splitlines())
    assert lines["1"] == found[3]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """After the only step of an epoch, whose loss was that of sound weights."""
    ended = call(*RUN, "OPTIM.BASE_LR", "1e40", "OPTIM.WARMUP_EPOCHS", 0, "TRAIN.BATCH_SIZE", 1257, "OUT_DIR", tmp_path)
    assert_refused(ended, "the weights backbone.", "are not finite after step 0, learning rate 1e+40", code=1)
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "result.json").exists()


def test_loss_that_turns_bad_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    words = [*DIGITS, "OPTIM.MAX_EPOCH", 3, "OPTIM.LR_POLICY", "steps", "OPTIM.STEPS", "[1]", "OPTIM.LR_MULT", "1e32",
             "OUT_DIR", tmp_path]  # fmt: skip
    ended = call(*words)
    assert_refused(ended, "(epoch 2, step", "learning rate 5e+30", code=1)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "best.safetensors", "step_000000019.safetensors"]  # fmt: skip
    assert newest(tmp_path)["epoch"] == 1 and not (tmp_path / "result.json").exists()
    assert call("--mode", "test", *words).code == 0
    again = call(*words)
    assert again.code == 1 and again.err == ended.err, "the same command fails in the same way"
