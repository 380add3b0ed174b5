"""Runs whose classes or parameters are sharded among processes: the same run, from any number of processes to any other."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import DIGITS, assert_same_run, call, finish, newest, result, start  # type: ignore[import-not-found]

from pycls.engine.checkpoint.state_file import load_weights, parts_of
from pycls.run import convert
from pycls.runtime.log import read_json_stats

COUNTS = ("samples", "top1_errors", "topk_errors", "class_samples", "class_errors", "confusion")
WORDS = [*DIGITS, "OPTIM.MAX_EPOCH", 2, "TRAIN.BATCH_SIZE", 66, "TRAIN.CHECKPOINT_PERIOD", 1, "OPTIM.CLIP_NORM", 1.0,
         "TENSORBOARD", False, "LOG_PERIOD", 1]  # fmt: skip
DYING = ["IMPORTS", f"[{Path(__file__).with_name('dying.py')}]"]
KINDS = {
    "ddp": [],
    "static": ["PARALLEL.STATIC_GRAPH", True],
    "class": ["HEAD.PARALLEL", "class"],
    "fsdp": ["PARALLEL.MODE", "fsdp"],
    "both": ["HEAD.PARALLEL", "class", "PARALLEL.MODE", "fsdp"],
}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with all of it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = call(*WORDS, "OUT_DIR", folder)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(kind, precision) -> the run on two processes, done once."""

    @functools.cache
    def run(kind: str, precision: object = False) -> Path:
        folder = tmp_path_factory.mktemp(kind) / "two"
        ended = finish(start(*WORDS, "NUM_PROCS", 2, "TRAIN.MIXED_PRECISION", precision, "OUT_DIR", folder, *KINDS[kind]))
        assert ended.code == 0 and (precision or ended.err == ""), ended
        return folder

    return run


def assert_same_numbers(ours: Path, theirs: Path) -> None:
    """Loss curves, weights and the optimiser's state but for rounding; counts to the integer."""
    for a, b in zip(result(ours)["history"], result(theirs)["history"], strict=True):
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-5)
        assert a["train"]["top1_err"] == b["train"]["top1_err"]
    for key in COUNTS:
        assert result(ours)["test"][key] == result(theirs)["test"][key], key
    (a, _), (b, _) = (load_weights(folder / "model.safetensors") for folder in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(newest(ours)["optimizer"], newest(theirs)["optimizer"], rtol=1e-3, atol=1e-4)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["class", "fsdp", pytest.param("both", marks=pytest.mark.slow)])
def test_two_processes_share_it_and_one_goes_on(
    kind: str, whole: Path, pair: Callable[..., Path], tmp_path: Path
) -> None:
    """That one finds a part of the last checkpoint damaged, or none, and takes the checkpoint before."""
    folder = pair(kind)
    assert_same_numbers(folder, whole)
    assert len(parts(folder)) == 4 and not parts(whole)
    after_one = unfinished(folder, tmp_path)
    (part,) = (after_one / "checkpoints").glob("part_000000038_*_1_of_2.safetensors")
    if kind == "class":
        data = part.read_bytes()
        part.write_bytes(data[:-5] + bytes([data[-5] ^ 8]) + data[-4:])
    else:
        part.unlink()
    ended = call(*WORDS, "OUT_DIR", after_one)
    assert ended.code == 0 and ended.err.count("\n") == 1 and part.name in ended.err, ended
    assert "going back to the checkpoint before it" in ended.err
    assert_same_numbers(after_one, whole)
    assert {name.split("_")[1] for name in parts(after_one)} == {"000000019"}, "one process writes one file"


def parts(folder: Path) -> list[str]:
    """The files of the checkpoints' parts; each belongs to a checkpoint."""
    found = sorted(path.name for path in (folder / "checkpoints").glob("part_*"))
    mains = [*(folder / "checkpoints").glob("step_*"), folder / "checkpoints/best.safetensors"]
    assert found == sorted({name for main in mains for name in parts_of(main)}) and not list(folder.rglob("*.pycls-tmp"))
    return found


def unfinished(folder: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be continued."""
    copied = tmp_path / "unfinished"
    shutil.copytree(folder, copied)
    (copied / "result.json").unlink()
    return copied


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("before", "after", "count"), [
    ("fsdp", "both", 3), ("whole", "both", 2), pytest.param("class", "class", 3, marks=pytest.mark.slow),
])  # fmt: skip
def test_others_go_on(
    before: str, after: str, count: int, whole: Path, pair: Callable[..., Path], tmp_path: Path
) -> None:
    """Other processes than those that saved, which have other rows; what they save is read here, in one."""
    folder = unfinished(whole if before == "whole" else pair(before), tmp_path)
    for last in (max((folder / "checkpoints").glob("step_*")), folder / "checkpoints/best.safetensors"):
        last.unlink()
    ended = finish(start(*WORDS, "NUM_PROCS", count, "OUT_DIR", folder, *KINDS[after]))
    assert ended.code == 0 and ended.err == "" and "continuing from epoch 2, step 0" in ended.out, ended
    assert_same_numbers(folder, whole)
    assert len([name for name in parts(folder) if name.endswith(f"_of_{count}.safetensors")]) == count


@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", ["1:7", pytest.param("0:21", marks=pytest.mark.slow)])
def test_killed_while_it_saves(place: str, pair: Callable[..., Path], tmp_path: Path) -> None:
    """Rank 1 before its part, or rank 0 before the file that names the parts, gets its name, in the second save."""
    ended = finish(start(*WORDS, *DYING, "NUM_PROCS", 2, "OUT_DIR", tmp_path, *KINDS["fsdp"], DIE=place))
    assert ended.code == 1 and f"rank {place[0]}" in ended.err and "Traceback" not in ended.err, ended
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == ["step_000000019.safetensors"]
    assert len(list((tmp_path / "checkpoints").glob("part_000000038_*"))) == (1 if place == "1:7" else 2)
    ended = finish(start(*WORDS, *DYING, "NUM_PROCS", 2, "OUT_DIR", tmp_path, *KINDS["fsdp"]))
    assert ended.code == 0 and ended.err == "" and "continuing from epoch 2, step 0" in ended.out, ended
    assert_same_run(tmp_path, pair("fsdp"))
    assert len(parts(tmp_path)) == 4


def test_parts_become_one_file(pair: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = pair("fsdp"), tmp_path / "one.safetensors"
    best = folder / "checkpoints/best.safetensors"
    assert convert.main(["--to", "ours", "--cfg", str(folder / "config.yaml"), str(best), str(out), "TRAIN.IM_SIZE", "8"]) == 0
    ours, theirs = load_weights(out)[0], load_weights(folder / "model.safetensors")[0]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def curve(folder: Path) -> list[tuple[str, str, float]]:
    """(epoch, step, mean loss of the epoch so far) of each step, from the log."""
    rows = read_json_stats(folder / "stdout.log", "train_iter")
    return [(row["epoch"], row["iter"], row["loss"]) for row in rows]


def test_a_static_graph_changes_nothing(pair: Callable[..., Path]) -> None:
    """DDP then finds the first step's gradients by the loss, which it has to find in the head's output."""
    assert_same_run(pair("static"), pair("ddp"))


@pytest.mark.parametrize("precision", [False, pytest.param("bf16", marks=pytest.mark.slow)])
def test_fsdp_trains_as_ddp_does(precision: object, pair: Callable[..., Path]) -> None:
    """Both on two processes: the losses step by step, and what is counted; autocast, too, rounds them alike."""
    ours, theirs = (pair(kind, precision) for kind in ("fsdp", "ddp"))
    steps, expected = curve(ours), curve(theirs)
    assert len(expected) >= 30 and [row[:2] for row in steps] == [row[:2] for row in expected]
    assert [row[2] for row in steps] == pytest.approx([row[2] for row in expected], rel=1e-3 if precision else 1e-5)
    if not precision:
        assert_same_numbers(ours, theirs)


VIT = ["MODEL.TYPE", "vit", "VIT.PATCH_SIZE", 2, "VIT.NUM_LAYERS", 2, "VIT.NUM_HEADS", 2, "VIT.HIDDEN_DIM", 32, "VIT.MLP_DIM",
       64, "OPTIM.MAX_EPOCH", 1]  # fmt: skip
RESNET = ["MODEL.TYPE", "resnet", "MODEL.DEPTH", 8, "OPTIM.MAX_EPOCH", 1]
AGAIN = ["MODEL.ACTIVATION_CHECKPOINTING", True]


def assert_same_weights(ours: Path, theirs: Path) -> None:
    (a, _), (b, _) = (load_weights(folder / "model.safetensors") for folder in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_shared_out_blocks_are_computed_again(tmp_path: Path) -> None:
    """FSDP gathers a block's parameters once more for that."""
    assert call(*WORDS, *VIT, "OUT_DIR", tmp_path / "whole").code == 0
    ended = finish(start(*WORDS, *VIT, *AGAIN, *KINDS["fsdp"], "NUM_PROCS", 2, "OUT_DIR", tmp_path / "two"))
    assert ended.code == 0 and ended.err == "", ended
    assert [x[2] for x in curve(tmp_path / "two")] == pytest.approx([x[2] for x in curve(tmp_path / "whole")], rel=1e-5)
    assert_same_weights(tmp_path / "two", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("precision", [False, "bf16"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_blocks_with_batch_norm_are_computed_again(kind: str, precision: object, tmp_path: Path) -> None:
    words = [*WORDS, *RESNET, "NUM_PROCS", 2, "TRAIN.MIXED_PRECISION", precision, "TRAIN.ACCUM_STEPS", 3]
    for name, more in (("plain", []), ("again", [*AGAIN, *KINDS[kind]])):
        ended = finish(start(*words, *more, "OUT_DIR", tmp_path / name))
        assert ended.code == 0, ended
    if kind == "ddp":
        assert_same_run(tmp_path / "again", tmp_path / "plain")
    elif not precision:
        assert_same_weights(tmp_path / "again", tmp_path / "plain")
    losses = [[row[2] for row in curve(tmp_path / name)] for name in ("again", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if precision else 1e-5)


@pytest.mark.parametrize(("words", "message"), [
    (["MODEL.ACTIVATION_CHECKPOINTING", True], "LeNet5 has no blocks"),
    (["MODEL.ACTIVATION_CHECKPOINTING", True, "MODEL.COMPILE", True], "does not go with MODEL.COMPILE"),
    (["PARALLEL.STATIC_GRAPH", True, "TRAIN.ACCUM_STEPS", 3], "does not go with TRAIN.ACCUM_STEPS"),
    (["HEAD.SAMPLE_RATE", 0.5], "needs HEAD.PARALLEL class"),
    (["HEAD.PARALLEL", "class", "HEAD.NAME", "smooth_topk"], "smooth_topk needs every logit"),
    (["HEAD.PARALLEL", "class", "TRAIN.MIXED_PRECISION", "fp16"], "take TRAIN.MIXED_PRECISION bf16"),
    (["PARALLEL.MODE", "fsdp", "OPTIM.EMA_UPDATE_PERIOD", 1], "no moving average"),
    (["HEAD.PARALLEL", "class", "TEST.OPEN_SET", "digits"], "for a whole model"),
    (["BN.SYNC", True], "works on GPUs"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(words: list[object], message: str, tmp_path: Path) -> None:
    ended = call(*WORDS, "OUT_DIR", tmp_path / "run", *words)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1, ended
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_sample_of_the_classes_trains(tmp_path: Path) -> None:
    """Also in one process, which draws the same at each step when it does the run again."""
    words = [*WORDS, "HEAD.NAME", "arcface", "HEAD.SCALE", 16.0, "HEAD.PARALLEL", "class", "HEAD.SAMPLE_RATE", 0.5]
    for name in ("a", "b"):
        assert call(*words, "OUT_DIR", tmp_path / name).code == 0
    assert result(tmp_path / "a") == result(tmp_path / "b")
    losses = [row["train"]["loss"] for row in result(tmp_path / "a")["history"]]
    assert losses[1] < losses[0]
