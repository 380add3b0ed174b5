"""The log's two readers: people and programs."""

import logging
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pycls.runtime.log import load_log_data, log_json_stats, read_json_stats, setup_logging
from pycls.runtime.progress import Progress

log = logging.getLogger("pycls.test")


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    before = list(root.handlers)
    level = logging.getLogger("pycls").level
    yield
    for handler in [h for h in root.handlers if h not in before]:
        root.removeHandler(handler)
        handler.close()
    logging.getLogger("pycls").setLevel(level)


def test_rank_0_speaks_at_the_terminal_and_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path)
    log.info("epoch %d", 3)
    log.warning("odd")
    log.debug("never")
    captured = capsys.readouterr()
    assert captured.out == "epoch 3\n" and captured.err == "warning: odd\n"
    lines = (tmp_path / "stdout.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["epoch 3", "odd"]


def test_other_ranks_only_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path, rank=2)
    log.info("epoch 3")
    log.error("bad")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "[rank 2] error: bad\n"
    assert os.listdir(tmp_path) == []


def test_setting_up_again_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path)
    setup_logging(tmp_path)
    log.info("once")
    assert capsys.readouterr().out == "once\n"
    assert (tmp_path / "stdout.log").read_text().count("once") == 1


def test_json_stats_have_pyclss_form_and_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path)
    stats = {"loss": 1 / 3, "lr": 1.23456789e-7, "iter": 10**9, "bad": math.nan, "worse": -math.inf, "ok": True,
             "tensor": torch.tensor(2.5), "array": np.float32(0.1),
             "per_class": [np.int64(7), 0.123456789]}  # fmt: skip
    log_json_stats(stats, "train_iter")
    log_json_stats({"top1_err": 2.5}, "test_epoch")
    path = tmp_path / "stdout.log"
    line = path.read_text().splitlines()[0]
    assert line.split(" ", 2)[2] == (
        'json_stats: {"_type": "train_iter", "array": 0.1, "bad": null, "iter": 1000000000, "loss": 0.333333, '
        '"lr": 1.23457e-07, "ok": true, "per_class": [7, 0.123457], "tensor": 2.5, "worse": null}'
    )
    assert read_json_stats(path, "test_epoch") == [{"_type": "test_epoch", "top1_err": 2.5}]
    assert [data["_type"] for data in read_json_stats(path)] == ["train_iter", "test_epoch"]


@pytest.mark.parametrize("terminal", [True, False])
def test_json_stats_are_not_shown_to_a_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    setup_logging(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    log_json_stats({"loss": 1.0}, "train_iter")
    log.info("for people")
    assert capsys.readouterr().out == "for people\n"
    assert len(read_json_stats(tmp_path / "stdout.log")) == 1


def test_a_log_cut_short_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"
    path.write_text('[trainer.py: 1]: json_stats: {"_type": "a", "x": 1}\njson_stats: {"_type": "a", "x": 2')
    assert read_json_stats(path) == [{"_type": "a", "x": 1}]
    setup_logging(tmp_path)
    log_json_stats({"x": 3, "y": 4}, "a")
    log_json_stats({"z": 5}, "b")
    assert load_log_data(path) == {"a": {"x": [1, 3], "y": [None, 4]}, "b": {"z": [5]}}


def test_lines_appear_above_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    with Progress(100, "epoch 1/2", enabled=True) as progress:
        progress.update(30, loss=0.51234567, top1_err=12.0)
        log.info("a line")
        progress.update(70, loss=0.4)
    captured = capsys.readouterr()
    assert captured.out == "a line\n"
    assert "epoch 1/2" in captured.err and " left" in captured.err and "img/s" in captured.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_a_full_disk_does_not_end_a_run_for_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stdout.log").symlink_to("/dev/full")
    setup_logging(tmp_path)
    for step in range(3):
        log.info("step %d", step)
    captured = capsys.readouterr()
    assert captured.out == "step 0\nstep 1\nstep 2\n"
    assert captured.err.count("cannot write") == 1 and "No space left" in captured.err
    setup_logging()


def test_a_closed_pipe_does_not_end_a_run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1, closefd=False) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        setup_logging()
        log.info("into the void")
        monkeypatch.undo()
    os.close(write)
    assert "Traceback" not in capfd.readouterr().err
