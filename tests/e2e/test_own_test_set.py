"""Images that are trained on are not tested on: in one run, or later by its weights; unless that is asked for."""

import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from running import DIGITS, Ended, call, snapshot

from pycls.data.index import overlap
from pycls.data.sets.digits import digits
from pycls.data.sets.image_folder import ImageFolder
from pycls.data.sets.image_list import image_list
from pycls.data.sets.webdataset import WebDataset
from pycls.data.subset.per_class import subset
from pycls.engine.checkpoint.state_file import load_weights, save_weights
from pycls.run.convert import main as convert

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from bad_files import photograph

NET = ["MODEL.TYPE", "lenet5", "TRAIN.IM_SIZE", 28, "DEVICE", "cpu", "NUM_THREADS", 1, "TENSORBOARD", False,
       "OPTIM.MAX_EPOCH", 0, "TRAIN.BATCH_SIZE", 2, "DATA_LOADER.NUM_WORKERS", 0, "TEST.TOP_K", 1,
       "TRAIN.EVAL_SPLIT", "none"]  # fmt: skip


def write(folder: Path, parts: tuple[str, ...] = ("train", "val"), classes: int = 2) -> Path:
    """Three images of each class, all different."""
    for k, part in enumerate(parts):
        for c in range(classes):
            (folder / part / f"c{c}").mkdir(parents=True)
            for i in range(3):
                photograph(16, 16, 100 * k + 10 * c + i).save(folder / part / f"c{c}" / f"{i}.png")
    return folder


def run(out: Path, *words: object, mode: str = "train") -> Ended:
    return call("--mode", mode, *NET, "OUT_DIR", out, *words)


def refused(ended: Ended, words: str) -> bool:
    return ended.code == 2 and words in ended.err and ended.err.count("\n") == 1


# --- in one run


@pytest.mark.parametrize(
    ("split", "more", "words"),
    [
        ("test", [], "TRAIN.SPLIT test: digits test, which the test error is to be of, is trained on; name other test images"),
        ("train", ["TEST.SPLIT", "train"], "TRAIN.SPLIT train: digits train, which"),
        ("trainval", ["TEST.SPLIT", "val"], "TRAIN.SPLIT trainval: digits val, which"),
        ("train", ["TEST.SPLIT", "trainval"], "TRAIN.SPLIT train: digits trainval, which"),
        ("test", ["TEST.DATASET", "digits"], "TRAIN.SPLIT test: digits test, which"),
    ],
)
def test_a_part_that_is_trained_on(tmp_path: Path, split: str, more: list[str], words: str) -> None:
    ended = call(*DIGITS, "TRAIN.SPLIT", split, "TRAIN.EVAL_SPLIT", "none", "OUT_DIR", tmp_path / "out", *more)
    assert refused(ended, words) and not snapshot(tmp_path), ended


def test_another_test_set_may_be_named(tmp_path: Path) -> None:
    words = [*DIGITS, "TRAIN.SPLIT", "test", "TRAIN.EVAL_SPLIT", "none", "OPTIM.MAX_EPOCH", 0, "OUT_DIR", tmp_path / "out"]
    assert call(*words, "TEST.SPLIT", "train").code == 0


def test_a_folder_is_the_other_by_a_link(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", ("train",))
    (folder / "val").symlink_to(folder / "train")
    ended = run(tmp_path / "out", "TRAIN.DATASET", "image_folder", "IMAGE_FOLDER.FOLDER", folder)
    assert refused(ended, "are the same folder: its images would have two labels, or be tested on and trained on"), ended
    assert not snapshot(tmp_path / "out")


def test_a_list_names_images_of_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (tmp_path / "test.txt").write_text("val/c0/0.png 0\nval/c1/0.png 1\nval/../train/c1/2.png 1\n")
    words = ["TRAIN.DATASET", "image_folder", "IMAGE_FOLDER.FOLDER", folder, "TEST.DATASET", "image_list", "IMAGE_LIST.FOLDER",
             folder, "IMAGE_LIST.TEST", tmp_path / "test.txt", "TEST.MATCH_CLASSES", "position"]  # fmt: skip
    ended = run(tmp_path / "out", *words)
    assert refused(ended, "test.txt: 1 of the 3 images of test, which") and "train/c1/2.png" in ended.err, ended
    (tmp_path / "test.txt").write_text("val/c0/0.png 0\nval/c1/0.png 1\n")
    assert run(tmp_path / "out", *words).code == 0


# --- by weights


def test_weights_on_their_own_training_images(tmp_path: Path) -> None:
    words = [*DIGITS, "OPTIM.MAX_EPOCH", 0, "TRAIN.EVAL_SPLIT", "none"]
    assert call(*words, "TRAIN.SPLIT", "trainval", "OUT_DIR", tmp_path / "run").code == 0
    files = [str(tmp_path / "run/model.safetensors"), str(tmp_path / "again.safetensors")]
    assert convert(["--to", "ours", "--cfg", str(DIGITS[1]), *files, "TRAIN.IM_SIZE", "8"]) == 0
    for weights in ("run/model.safetensors", "again.safetensors"):
        test = ["--mode", "test", *DIGITS, "OUT_DIR", tmp_path / "out", "TEST.WEIGHTS", tmp_path / weights]
        ended = call(*test, "TEST.SPLIT", "val")
        assert refused(ended, "was trained on digits trainval, which has the images of val; TEST.SPLIT trainval tests on tr")
        assert not (tmp_path / "out").exists()
        for part, said in (("trainval", True), ("train", True), ("auto", False)):
            ended = call(*test, "TEST.SPLIT", part)
            assert ended.code == 0 and ("was trained on digits trainval" in ended.err) is said, ended
        shutil.rmtree(tmp_path / "out")


def test_weights_on_a_folder_that_is_another_ones_training_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    assert run(tmp_path / "run", "TRAIN.DATASET", "image_folder", "IMAGE_FOLDER.FOLDER", folder).code == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "b/val").symlink_to(folder / "train")
    test = ["TRAIN.DATASET", "image_folder", "TEST.WEIGHTS", tmp_path / "run/model.safetensors"]
    ended = run(tmp_path / "out", *test, "IMAGE_FOLDER.FOLDER", tmp_path / "b", mode="test")
    assert refused(ended, "model.safetensors was trained on 6 of the 6 images of image_folder "), ended
    (tmp_path / "b/val").unlink()
    (tmp_path / "b/val").symlink_to(folder / "val")
    assert run(tmp_path / "out", *test, "IMAGE_FOLDER.FOLDER", tmp_path / "b", mode="test").code == 0
    shutil.move(folder, tmp_path / "gone")  # nothing is left to compare with
    (tmp_path / "b/val").unlink()
    (tmp_path / "b/val").symlink_to(tmp_path / "gone/train")
    assert run(tmp_path / "out", *test, "IMAGE_FOLDER.FOLDER", tmp_path / "b", mode="test").code == 0


def test_weights_on_what_other_options_held_out(tmp_path: Path, random_mnist: Path) -> None:
    """Trained on all 720 images, of which 60 are then the part val."""
    words = [*DIGITS, "TRAIN.DATASET", "mnist", "DATA.ROOT", random_mnist, "DATA.DOWNLOAD", False, "TEST.CROPS", 1]
    trained = [*words, "TRAIN.EVAL_SPLIT", "none", "MNIST.VAL_SIZE", 0, "OPTIM.MAX_EPOCH", 0, "OUT_DIR", tmp_path / "run"]
    assert call(*trained).code == 0
    ended = call("--mode", "test", *words, "MNIST.VAL_SIZE", 60, "TEST.SPLIT", "val", "OUT_DIR", tmp_path / "out",
                 "TEST.WEIGHTS", tmp_path / "run/model.safetensors")  # fmt: skip
    assert refused(ended, "was trained on 60 of the 60 images of mnist, val, such as image 0; TEST.SPLIT train tests"), ended


@pytest.mark.parametrize(
    "about",
    ["[", "TRAIN: 3", "TRAIN: {DATASET: [digits], SPLIT: {}}", "TRAIN: {DATASET: digits, SPLIT: val}\nDATA: {ROOT: [3]}",
     "TRAIN: {DATASET: mnist, SPLIT: val}\nDATA: {ROOT: 3}\nMNIST: {VAL_SIZE: {}}\nIMPORTS: [nowhere]",
     "TRAIN: {DATASET: image_list, SPLIT: train}\nDATA: {}\nIMAGE_LIST: {TRAIN: 3, FOLDER: [4]}",
     "TRAIN: {DATASET: webdataset, SPLIT: train}\nDATA: {}\nWEBDATASET: {TRAIN: 's3://bucket/a.tar'}"],
)  # fmt: skip
def test_what_a_file_may_tell_of_its_training(trained: Path, tmp_path: Path, about: str) -> None:
    """Nothing that it says leads further than to the test itself."""
    weights, facts = load_weights(trained / "model.safetensors")
    save_weights(tmp_path / "w.safetensors", weights, {**facts, "config": about})
    ended = call("--mode", "test", *DIGITS, "TEST.WEIGHTS", tmp_path / "w.safetensors", "OUT_DIR", tmp_path / "out")
    assert ended.code == 0, ended


# --- sets that share images


def test_the_same_files_whatever_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = ImageFolder(str(write(tmp_path / "a")), "train")
    other = write(tmp_path / "b", ("test",))
    tested = ImageFolder(str(other), "test")
    assert overlap.shared_images(trained, tested) is None
    for link in (os.symlink, os.link):
        path = other / "test/c1" / f"{link.__name__}.png"
        link(tmp_path / "a/train/c0/1.png", path)
        for limit in (overlap.LOOKED_AT, 9):  # of many files links are followed, hard links are not
            monkeypatch.setattr(overlap, "LOOKED_AT", limit)
            found = overlap.shared_images(trained, ImageFolder(str(other), "test"))
            assert found == ((1, str(path)) if limit > 9 or link is os.symlink else None)
            monkeypatch.undo()
        path.unlink()


def test_parts_of_sets_tars_and_lists(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    for name in ("one", "two"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for k in range(2):
                (tmp_path / f"{k}.cls").write_text(str(k))
                tar.add(folder / f"val/c{k}/0.png", f"{k}.png")
                tar.add(tmp_path / f"{k}.cls", f"{k}.cls")
    (tmp_path / "link.tar").symlink_to("one.tar")
    one, two, link = (WebDataset(str(tmp_path), "val", val=f"{name}.tar") for name in ("one", "two", "link"))
    assert overlap.shared_images(one, two) is None
    assert overlap.shared_images(one, link) == (2, f"{tmp_path}/link.tar:0")
    whole = ImageFolder(str(folder), "train")
    first, rest = subset(whole, torch.tensor([0, 1])), subset(whole, torch.tensor([1, 2]))
    assert overlap.shared_images(first, rest) == (1, str(folder / "train/c0/1.png"))
    (tmp_path / "val.txt").write_text(f"{folder}/train/../train/c0/0.png 0\n")
    listed = image_list(str(tmp_path), "val", val="val.txt")
    found = overlap.shared_images(whole, listed)
    assert found is not None and found[0] == 1


def test_sets_in_memory() -> None:
    train, test = digits("", "train"), digits("", "test")
    assert overlap.shared_images(train, test) is None
    assert overlap.shared_images(digits("", "trainval"), train) == (len(train), "image 0")
