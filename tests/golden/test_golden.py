"""What earlier versions wrote and computed stays readable and stays the same; see observe.py. Additions pass."""

import shutil
import sys
from pathlib import Path
from typing import Any

import observe
import pytest
import simplejson

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from running import call, result  # type: ignore[import-not-found]

RUNS = Path(__file__).parent / "runs"
FINISHED, STOPPED = (sorted(path.parent.name for path in RUNS.glob(f"*/{kind}")) for kind in ("finished", "stopped"))


def test_every_name_is_still_registered() -> None:
    present = observe.names()
    for kind, names in observe.pinned("names").items():
        assert set(names) <= set(present[kind]), kind


def test_every_option_has_its_default() -> None:
    present = observe.options()
    for component, options in observe.pinned("options").items():
        assert {key: present[component].get(key, "missing") for key in options} == options, component


def test_state_dicts_have_the_same_entries() -> None:
    present = observe.state_keys()
    for component, entries in observe.pinned("state_keys").items():
        assert set(entries) <= set(present[component]), component


@pytest.mark.parametrize(("file", "tolerance"), [("losses_float64", 1e-9), ("losses_float32", 2e-5)])
def test_twenty_steps_of_every_head_have_the_same_losses(file: str, tolerance: float) -> None:
    present = observe.OBSERVED[file]()
    for head, losses in observe.pinned(file).items():
        assert present[head] == pytest.approx(losses, rel=tolerance), head


@pytest.mark.parametrize("head", FINISHED)
def test_a_finished_run_is_tested_again(head: str, tmp_path: Path) -> None:
    folder = _copied(RUNS / head / "finished", tmp_path)
    expected = result(folder)["test"]
    ended = call("--mode", "test", "--cfg", folder / "config.yaml", "OUT_DIR", folder)
    assert ended.code == 0, ended.err
    _assert_same_test(simplejson.loads((folder / "test.json").read_text())["test"], expected)


@pytest.mark.parametrize("head", STOPPED)
def test_a_run_stopped_within_an_epoch_goes_on(head: str, tmp_path: Path) -> None:
    folder = _copied(RUNS / head / "stopped", tmp_path)
    ended = call("--mode", "train", "--cfg", folder / "config.yaml", "OUT_DIR", folder)
    assert ended.code == 0, ended.err
    _assert_same_test(result(folder)["test"], result(RUNS / head / "finished")["test"])


def _copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "run"))


def _assert_same_test(present: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("samples", "top1_errors", "topk_errors", "class_samples", "class_errors", "confusion"):
        assert present[key] == expected[key], key
    assert present["loss"] == pytest.approx(expected["loss"], abs=1e-4)
