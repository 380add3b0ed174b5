"""Classes are known by their names: in testing, in fine-tuning and when a run goes on."""

from pathlib import Path

import pytest
import simplejson
import torch
from running import Ended, call, newest, result

from pycls.engine.checkpoint.state_file import load_weights, save_weights

LETTERS = ["IMPORTS", f"[{Path(__file__).with_name('letters.py')}]", "MODEL.TYPE", "lenet5", "TRAIN.DATASET", "letters",
           "TRAIN.EVAL_SPLIT", "test", "DEVICE", "cpu", "NUM_THREADS", 1, "TENSORBOARD", False, "TRAIN.BATCH_SIZE", 8,
           "OPTIM.MAX_EPOCH", 3, "OPTIM.BASE_LR", 0.02, "TEST.TOP_K", 2, "OPTIM.EMA_UPDATE_PERIOD", 1]  # fmt: skip
NAMES = ["ant", "bee", "cat", "dog", "elk"]


def root(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "names.txt").write_text(" ".join(names))
    return folder


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt five classes."""
    folder = tmp_path_factory.mktemp("animals")
    ended = call(*LETTERS, "DATA.ROOT", root(folder / "data", NAMES), "OUT_DIR", folder / "run")
    assert ended.code == 0, ended.err
    assert result(folder / "run")["test"]["top1_err"] == 0
    return folder / "run"


def trial(animals: Path, tmp_path: Path, names: list[str], *more: object) -> Ended:
    where = ["DATA.ROOT", root(tmp_path / "data", names), "OUT_DIR", tmp_path / "out"]
    return call("--mode", "test", *LETTERS, *where, "TEST.WEIGHTS", animals / "model.safetensors", *more)


@pytest.mark.parametrize("parallel", ["none", "class"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["elk", "cat", "ant", "bee", "dog"], "its 5 classes are those of {weights} in another order, and are matched by"),
        (["dog", "bee"], "its 2 classes are found by their names among the 5 of {weights}"),
    ],
)
def test_a_test_matches_classes_by_name(animals: Path, tmp_path: Path, names: list[str], said: str, parallel: str) -> None:
    ended = trial(animals, tmp_path, names, "HEAD.PARALLEL", parallel)
    assert ended.code == 0 and said.format(weights=animals / "model.safetensors") in ended.out, ended
    assert simplejson.loads((tmp_path / "out/test.json").read_text())["test"]["top1_err"] == 0


def test_a_test_on_other_classes_is_refused_unless_it_is_asked_for(animals: Path, tmp_path: Path) -> None:
    other = ["one", "two", "three", "four", "five"]
    for names, words in (
        (other, "none of its 5 classes (one, two, three, ...) is one of the 5"),
        ([*NAMES[:4], "fly"], "letters has the class 'fly', which is not one of the 5"),
        (["0", "1"], "none of its 2 classes (0, 1)"),
    ):
        ended = trial(animals, tmp_path, names)
        assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1, ended
        assert "TEST.MATCH_CLASSES position" in ended.err and not (tmp_path / "out").exists()
    ended = trial(animals, tmp_path, other, "TEST.MATCH_CLASSES", "position")
    assert ended.code == 0 and "its 5 classes are taken by position ('one' for 'ant')" in ended.out
    ended = trial(animals, tmp_path, [*other, "six"], "TEST.MATCH_CLASSES", "position", "TEST.TOP_K", 1)
    assert ended.code == 2 and "letters has 6 classes, " in ended.err


def test_weights_without_names(animals: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", load_weights(animals / "model.safetensors")[0], {})
    ended = trial(animals, tmp_path, NAMES, "TEST.WEIGHTS", tmp_path / "w.safetensors")
    assert ended.code == 0 and "does not name its classes: class k of letters is taken to be its output k" in ended.out


@pytest.mark.parametrize(("weights", "parallel"), [("model.safetensors", "class"), ("checkpoints/step_*.safetensors", "none")])
def test_fine_tuning_on_classes_in_another_order(animals: Path, tmp_path: Path, weights: str, parallel: str) -> None:
    """Without a step of training they are told apart as before: by the weights, and by their moving average."""
    where = ["DATA.ROOT", root(tmp_path / "data", NAMES[::-1]), "OUT_DIR", tmp_path / "out"]
    source = max(animals.glob(weights))
    still = ["OPTIM.BASE_LR", 1e-30, "OPTIM.MAX_EPOCH", 1, "HEAD.PARALLEL", parallel]
    ended = call(*LETTERS, *where, "TRAIN.WEIGHTS", source, *still)
    assert ended.code == 0 and "the same 5 classes in another order, each with its own weights" in ended.out, ended
    assert result(tmp_path / "out")["test"]["top1_err"] == 0
    before, after = load_weights(source)[0], newest(tmp_path / "out")
    for which in ("model", "ema"):
        assert torch.equal(after[which]["head.similarity.weight"], before["head.similarity.weight"].flip(0))
    assert after["class_names"] == NAMES[::-1]


def test_fine_tuning_on_other_classes(animals: Path, tmp_path: Path) -> None:
    """As many as before, none of them the same."""
    where = ["DATA.ROOT", root(tmp_path / "data", list("VWXYZ")), "OUT_DIR", tmp_path / "out", "OPTIM.MAX_EPOCH", 0]
    ended = call(*LETTERS, *where, "TRAIN.WEIGHTS", animals / "model.safetensors")
    assert ended.code == 0 and "head re-initialised because none of its 5 classes (ant, bee, cat, ...) is" in ended.out
    before, after = (load_weights(folder / "model.safetensors")[0] for folder in (animals, tmp_path / "out"))
    assert not torch.equal(before["head.similarity.weight"], after["head.similarity.weight"])
    assert all(torch.equal(before[name], after[name]) for name in after if name.startswith("backbone."))


def test_a_run_does_not_go_on_with_other_classes(tmp_path: Path) -> None:
    words = [*LETTERS, "DATA.ROOT", root(tmp_path / "data", NAMES), "OUT_DIR", tmp_path / "out", "OPTIM.MAX_EPOCH", 1]
    assert call(*words).code == 0
    (tmp_path / "out/result.json").unlink()
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    for names, change in (
        (["ant", "cow", *NAMES[2:]], "class 1 was 'bee' and is 'cow'"),
        (NAMES[:4], "there were 5 (ant, bee, cat, ...), and there are 4 (ant, bee, cat, ...)"),
    ):
        root(tmp_path / "data", names)
        ended = call(*words)
        assert ended.code == 2 and f"out holds a run on other classes: {change}" in ended.err, ended
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")} == kept


def test_another_set_that_has_the_training_images(tmp_path: Path) -> None:
    where = ["DATA.ROOT", root(tmp_path / "data", NAMES), "OUT_DIR", tmp_path / "out"]
    ended = call(*LETTERS, *where, "TEST.DATASET", "letters_again")
    assert ended.code == 2 and "letters: 40 of the 40 images of test, which the test error is to be of, are" in ended.err, ended
