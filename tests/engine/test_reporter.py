"""What a person reads while a training runs."""

from pathlib import Path

import pytest
import torch

from pycls.engine import finite
from pycls.report import reporter
from pycls.report.summary import table
from pycls.report.tensorboard import TensorBoardLogger
from pycls.runtime.rank_timer import Spread


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3600, "1 h 0 min"), (19_000, "5 h 16 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert reporter.duration(seconds) == text


def test_plain_lines_are_few(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(reporter.time, "perf_counter", lambda: clock[0])
    caplog.set_level("INFO", "pycls.report.reporter")
    voice = reporter.Reporter(TensorBoardLogger(tmp_path, False), True, max_epoch=2, steps=100, batch_size=10, split="val")
    stats = {"loss": 0.5, "top1_err": 12.5, "topk_err": 1.0}
    with voice.begin_epoch(0, 0):
        for step in range(10, 101, 10):
            clock[0] += 4.0
            voice.steps_done(0, step, 0.1, stats, {})
    voice.end_epoch({"epoch": 1, "train": stats, "model": stats, "ema": {**stats, "top1_err": 7.25}, "best": True})
    lines = [record.getMessage() for record in caplog.records if record.name == "pycls.report.reporter"]
    assert lines == [
        "epoch 1/2, step 30/100: train loss 0.5, top-1 error 12.50 %, 25 img/s, 1 min 8 s left",
        "epoch 1/2, step 60/100: train loss 0.5, top-1 error 12.50 %, 25 img/s, 56 s left",
        "epoch 1/2, step 90/100: train loss 0.5, top-1 error 12.50 %, 25 img/s, 44 s left",
        "epoch 1/2: train loss 0.5, top-1 error 12.50 %, val top-1 error 12.50 %, moving average top-1 error 7.25 % (best); "
        "25 img/s, 40 s left",
    ]


def test_other_ranks_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    voice = reporter.Reporter(TensorBoardLogger(tmp_path, False), False, 1, 10, 10, "val")
    with voice.begin_epoch(0, 0):
        voice.steps_done(0, 10, 0.1, {"loss": 1.0, "top1_err": 1.0}, {})
    voice.end_epoch({"epoch": 1, "train": {"loss": 1.0, "top1_err": 1.0}})
    assert caplog.text == ""


def test_the_first_bad_step_is_found() -> None:
    ids = [torch.tensor([k, k + 1]) for k in range(3)]
    assert finite.first_bad_step([1.0, 2.0, 3.0], ids, 1) is None
    bad = finite.first_bad_step([1.0, 1.0, 2.0, float("inf"), float("nan"), 1.0], ids, 2)
    assert bad is not None and (bad.index, bad.value, bad.ids) == (1, float("inf"), [1, 2])
    assert finite.BadStep(0, 1.0, list(range(1000))).samples().endswith("255 ... (1000 in all)")


def test_table() -> None:
    test = {"samples": 1234, "top1_errors": 12, "topk_errors": 1, "top1_err": 0.9724, "topk_err": 0.081, "top_k": 3,
            "loss": 0.1, "nll": 0.2, "ece": 0.03, "class_samples": [4, 5, 0], "class_errors": [1, 4, 0]}  # fmt: skip
    text = table({"test": test, "test_set": "d", "test_split": "val", "weights": "ema", "epoch": 7, "history": [],
                  "chosen_on": "val", "class_names": ["a", "b", "c"]})  # fmt: skip
    assert "d val, 1,234 images" in text and "moving average, epoch 7, best on val" in text
    assert "0.97 %  (12 wrong)" in text and "top-3 error" in text and "b 80.0 %, a 25.0 %" in text


def test_a_process_that_is_slow_again_and_again_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    voice = reporter.Reporter(TensorBoardLogger(tmp_path, False), True, max_epoch=1, steps=100, batch_size=10, split="val")
    slow, other, even = (Spread(0.1, 0.1, slowest, rank, "host") for slowest, rank in ((0.3, 1), (0.3, 2), (0.11, 1)))
    with voice.begin_epoch(0, 0):
        for step, spread in enumerate([slow, slow, even, slow, slow, other, slow, slow, slow, slow]):
            assert not [record for record in caplog.records if record.levelname == "WARNING"] or step == 9
            voice.steps_done(0, step + 1, 0.1, {"loss": 0.5, "top1_err": 1.0}, {}, spread)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["rank 1 (host) is a straggler: 0.3 s/step for its batch and forward pass, median 0.1"]
