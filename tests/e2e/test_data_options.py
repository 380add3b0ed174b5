"""Whole runs on folders with bad files, long tails, noise and samplers; what is wrong is one line before training."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from running import assert_same_run, call, finish, result, samples, snapshot, start

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from bad_files import BAD, photograph, write_bad

TINY = ["MODEL.TYPE", "lenet5", "TRAIN.IM_SIZE", 28, "DEVICE", "cpu", "NUM_THREADS", 1, "TENSORBOARD", False]


def write_photos(root: Path, train: int = 40, val: int = 12, bad: int = 0) -> Path:
    """Four classes in folders."""
    for part, good in (("train", train), ("val", val)):
        for k in range(4):
            (root / part / f"c{k}").mkdir(parents=True)
        for i in range(good):
            photograph(30, 28 + i % 3, i % 4).save(root / part / f"c{i % 4}" / f"{i:04}.jpg")
        for i in range(bad):
            write_bad(root / part / f"c{i % 4}", list(BAD)[i % 20], i)
    return root


def folder(root: Path, out: Path, *more: object) -> list[object]:
    return [*TINY, "TRAIN.DATASET", "image_folder", "IMAGE_FOLDER.FOLDER", root, "OUT_DIR", out, "TRAIN.BATCH_SIZE", 20,
            "OPTIM.MAX_EPOCH", 2, "DATA_LOADER.NUM_WORKERS", 0, *more]  # fmt: skip


def test_a_run_over_bad_files_ends_with_an_exact_account(tmp_path: Path) -> None:
    root, out = write_photos(tmp_path / "photos", 80, 20, bad=20), tmp_path / "out"
    ended = call(*folder(root, out))
    assert ended.code == 0, ended.err
    found = result(out)
    assert found["unreadable"] == {"train": 20, "val": 20}
    assert found["test"]["samples"] == 20 and found["test"]["unreadable"] == 20
    assert [row["model"]["unreadable"] for row in found["history"]] == [20, 20]
    lines = [line.split("\t") for line in (out / "unreadable.txt").read_text().splitlines()]
    assert len(lines) == 40 and all(Path(name).is_file() and reason for _, name, reason in lines)
    tested = call("--mode", "test", *folder(root, out))
    assert tested.code == 0 and "20" in tested.out

    refused = call(*folder(root, tmp_path / "strict", "DATA.MAX_UNREADABLE", 3))
    assert refused.code == 1 and refused.err.count("error: ") == 1 and "Traceback" not in refused.err
    assert "with it 4 images of train are unreadable, and DATA.MAX_UNREADABLE is 3" in refused.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("mode", ["train", "time"])
def test_decoding_on_a_gpu_that_is_not_there_is_one_line(tmp_path: Path, mode: str) -> None:
    root, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    ended = call("--mode", mode, *folder(root, out), "DEVICE", "auto", "DATA_LOADER.DECODER", "gpu")
    assert ended.code == 2 and ended.err.splitlines()[-1] == (
        "error: DATA_LOADER.DECODER gpu needs a CUDA GPU, and this run is on cpu; auto and pillow decode anywhere"
    )
    assert not snapshot(out)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_bad_files_of_twenty_kinds_among_two_thousand(tmp_path: Path) -> None:
    """From a shell, on two worker processes: it ends, and each bad file is named once, with its reason, and nothing else."""
    root, out = write_photos(tmp_path / "photos", 2000, 20), tmp_path / "out"
    kinds = list(BAD)
    bad = {str(write_bad(root / "train" / f"c{i // 20 % 4}", kinds[i % 20], i)) for i in range(200)}
    assert len(kinds) == 20 and len(bad) == 200
    options = ["OPTIM.BASE_LR", 0.01, "DATA.MAX_UNREADABLE", 200, "DATA_LOADER.NUM_WORKERS", 2, "LOG_SAMPLES", True]
    ended = finish(start(*folder(root, out, *options)))
    assert ended.code == 0 and "Traceback" not in ended.err, ended.err
    assert result(out)["unreadable"] == {"train": 200}
    lines = [line.split("\t") for line in (out / "unreadable.txt").read_text().splitlines()]
    assert all(part == "train" and reason for part, _, reason in lines)
    assert sorted(name for _, name, _ in lines) == sorted(bad)
    assert ended.err.count("is left out") == 200, "each is named once, in two epochs"
    assert "200 images of train could not be read" in ended.err
    epochs = list(samples(out).values())
    assert len(epochs) == 220 and all(len(ids) == 20 for ids in epochs), "others stand in for the bad ones"
    assert len({i for ids in epochs for i in ids}) == 2000


def test_what_is_wrong_is_one_line_before_training(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos")
    (root / "val" / "c2").rename(tmp_path / "gone")
    lists = tmp_path / "list.txt"
    lists.write_text("c0/0.jpg 0\nc1/1.jpg 1\n")
    for options, message in (
        (folder(root, tmp_path / "out"), "val has no folder for the class 'c2'"),
        ([*TINY, "TRAIN.DATASET", "image_list", "IMAGE_LIST.TRAIN", lists, "OUT_DIR", tmp_path / "out"], "there is no file"),
    ):  # fmt: skip
        ended = call(*options)
        assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1, ended
        assert not list((tmp_path / "out").glob("[!.]*"))


def test_a_model_is_tested_on_part_of_its_classes(tmp_path: Path) -> None:
    """A folder of two of the four classes, no train beside it: the classes are the model's."""
    root = write_photos(tmp_path / "photos", 40, 12)
    assert call(*folder(root, tmp_path / "out")).code == 0
    other = tmp_path / "other"
    for k in (1, 3):
        (other / "val" / f"c{k}").mkdir(parents=True)
        for i in range(5):
            photograph(30, 30, k).save(other / "val" / f"c{k}" / f"{i}.jpg")
    for weights in ("model.safetensors", "checkpoints/best.safetensors"):
        ended = call("--mode", "test", *folder(other, tmp_path / "out"), "TEST.WEIGHTS", tmp_path / "out" / weights)
        assert ended.code == 0, ended.err
        assert '"class_samples": [0, 5, 0, 5]' in " ".join((tmp_path / "out" / "test.json").read_text().split()).replace(
            "[ ", "[").replace(" ]", "]"), weights  # fmt: skip


def test_protocols_are_saved_hashed_and_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    options = [*TINY[:2], *TINY[4:], "TRAIN.BATCH_SIZE", 32, "OPTIM.MAX_EPOCH", 2, "DATA.LONG_TAIL.PROFILE", "exponential",
               "DATA.LONG_TAIL.IMBALANCE", 10, "DATA.NOISE.KIND", "symmetric", "DATA.NOISE.RATE", 0.2,
               "TRAIN.SAMPLER", "class_aware", "LOG_SAMPLES", True, "RNG_SEED", 3]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    ended = call(*options, "OUT_DIR", one)
    assert ended.code == 0, ended.err
    written = yaml.safe_load((one / "config.yaml").read_text())
    digest = written["DATA"]["HASH"]
    assert len(digest) == 64 and f"sha256 {digest[:16]}" in ended.out + ended.err + (one / "stdout.log").read_text()
    saved = np.load(one / "training_set.npz", allow_pickle=False)
    wrong = saved["labels"] != saved["true_labels"]
    counts = np.bincount(saved["true_labels"])
    assert 0.1 < wrong.mean() < 0.3 and counts[0] / counts[-1] > 9

    assert call("--cfg", one / "config.yaml", "OUT_DIR", two).code == 0
    assert_same_run(two, one)
    assert samples(two) == samples(one)
    refused = call("--cfg", one / "config.yaml", "DATA.SEED", 1, "OUT_DIR", tmp_path / "three")
    assert refused.code == 2 and f"DATA.HASH is {digest}, but the training set's is" in refused.err
    assert call(*options, "OUT_DIR", one).code == 0, "the run is finished, and known by its options without the hash"


@pytest.mark.parametrize(
    "options, message",
    [
        (["DATA.LONG_TAIL.IMBALANCE", 10], "DATA.LONG_TAIL.IMBALANCE has no effect: DATA.LONG_TAIL.PROFILE is none"),
        (["DATA.NOISE.RATE", 0.1], "DATA.NOISE.RATE has no effect: DATA.NOISE.KIND is none"),
        (["TRAIN.SAMPLES_PER_CLASS", 2], "TRAIN.SAMPLES_PER_CLASS has no effect: TRAIN.SAMPLER is instance"),
        (["DATA.NOISE.KIND", "superclass", "DATA.NOISE.RATE", 0.1], "this data set has no superclasses"),
        (["TRAIN.SAMPLER", "balanced"], "expected one of instance, class_aware"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: list[object], message: str) -> None:
    ended = call(*TINY[:2], *TINY[4:], "OUT_DIR", tmp_path, *options)
    assert ended.code == 2 and message in ended.err
