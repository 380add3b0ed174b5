"""TEST.OPEN_SET: the test images of known classes against those of another data set."""

import json

import pytest

from pycls.cli import main

BASE = ["MODEL.TYPE", "lenet5", "OPTIM.MAX_EPOCH", "1", "DEVICE", "cpu", "TENSORBOARD", "False"]


def test_a_set_is_not_told_from_itself(tmp_path, capsys):
    assert main([*BASE, "OUT_DIR", str(tmp_path), "TEST.OPEN_SET", "digits"]) == 0
    found = json.loads((tmp_path / "result.json").read_text())["test"]["open_set"]
    assert found["data_set"] == "digits" and set(found["scores"]) == {"max_softmax", "energy", "nearest_prototype"}
    assert all(numbers["auroc"] == pytest.approx(0.5) for numbers in found["scores"].values())
    assert all(numbers["fpr95"] == pytest.approx(0.95, abs=0.01) for numbers in found["scores"].values())
    assert "AUROC" in capsys.readouterr().out


def test_a_set_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main([*BASE, "OUT_DIR", str(tmp_path), "TEST.OPEN_SET", "digitz"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_missing_data_are_told_before_training(tmp_path, capsys):
    words = ["OUT_DIR", str(tmp_path / "out"), "TEST.OPEN_SET", "mnist", "DATA.ROOT", str(tmp_path), "DATA.DOWNLOAD", "False"]
    assert main([*BASE, *words]) == 2
    assert "mnist" in capsys.readouterr().err and not (tmp_path / "out" / "config.yaml").exists()
