"""What a person watches: the bar and the curves."""

import logging
import sys
from pathlib import Path

import pytest

from pycls.report.tensorboard import TensorBoardLogger
from pycls.runtime.progress import Progress

pytestmark = pytest.mark.timeout(60)


def test_nothing_is_drawn_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "epoch") as progress:
        assert not progress.enabled
        progress.update(10, loss=1.0)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_bar_shows_values_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1000, "epoch 2/5", enabled=True, initial=500)
    progress._bar.mininterval = 0
    progress.update(250, loss=0.5123456, top1_err=1.25)
    text = capsys.readouterr().err
    progress.close()
    assert "epoch 2/5" in text and "75%" in text and "loss 0.5123, top1_err 1.25" in text
    assert "img/s" in text and "left" in text


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_curves_do_not_double_back_on_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoardLogger(tmp_path) as board:
        for step in range(4):
            board.scalars(step, {"train/loss": 10.0 - step, "lr": 0.5})
    with TensorBoardLogger(tmp_path, purge_step=2) as board:
        board.scalars(2, {"train/loss": 1.0})
    assert curve(tmp_path, "train/loss") == [(0, 10.0), (1, 9.0), (2, 1.0)]
    assert curve(tmp_path, "lr") == [(0, 0.5), (1, 0.5)]


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    with TensorBoardLogger(tmp_path / "tb", enabled=False) as board:
        board.scalars(0, {"x": 1.0})
    assert not (tmp_path / "tb").exists()


def test_without_the_package_one_line_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING), TensorBoardLogger(tmp_path) as board:
        board.scalars(0, {"x": 1.0})
        board.scalars(1, {"x": 1.0})
    assert [record.message for record in caplog.records] == [
        "no TensorBoard curves are written: the package tensorboard is not installed"
    ]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tb").touch()
    with TensorBoardLogger(tmp_path / "tb") as board:
        board.scalars(0, {"x": 1.0})
        board.scalars(1, {"x": 1.0})
    assert len(caplog.records) == 1
