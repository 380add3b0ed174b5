"""``--mode scale`` from the command line's words to a file that trains."""

from pathlib import Path

import pytest

from pycls import build, config
from pycls.errors import InputError
from pycls.models.complexity import complexity
from pycls.run import scale

BASE = ["MODEL.TYPE", "regnet", "REGNET.DEPTH", "4", "REGNET.W0", "8", "REGNET.WA", "8", "REGNET.GROUP_W", "4",
        "REGNET.SE_ON", "True", "REGNET.STRIDE", "1", "TRAIN.DATASET", "digits", "TRAIN.IM_SIZE", "8"]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_to_train(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*BASE, "TEST.IM_SIZE", "10", "MODEL.SCALING_TYPE", "wr", "MODEL.SCALING_FACTOR", "16", "OUT_DIR", "runs/x"]
    cfg = config.load(None, words)
    assert scale.scale(cfg) == 0
    scaled = config.load("runs/x/scaled.yaml")
    assert scaled.MODEL.TYPE == "anynet" and "REGNET" not in scaled and scaled.ANYNET.SE_ON
    assert (scaled.TRAIN.IM_SIZE, scaled.TEST.IM_SIZE, scaled.OUT_DIR) == (16, 20, "runs/x/scaled")
    assert (scaled.MODEL.SCALING_TYPE, scaled.MODEL.SCALING_FACTOR) == ("", 1.0), "not scaled twice"
    same = {"MODEL", "ANYNET", "REGNET", "TRAIN", "TEST", "OUT_DIR"}
    assert {k: v for k, v in scaled.items() if k not in same} == {k: v for k, v in cfg.items() if k not in same}
    model = build.build_model(scaled, *build.input_of(scaled))
    counts = complexity(model, 1, 16)
    printed = capsys.readouterr().out
    assert f"after:  {counts}" in printed and "TRAIN.IM_SIZE: 8 -> 16" in printed and "REGNET" not in printed


def test_what_cannot_be_scaled(here: Path) -> None:
    for words, message in (
        ([], "MODEL.SCALING_TYPE and MODEL.SCALING_FACTOR: expected some of d, w, g and r"),
        (["MODEL.SCALING_TYPE", "dw", "MODEL.SCALING_FACTOR", "0"], "MODEL.SCALING_FACTOR: expected above 0, found 0.0"),
    ):
        with pytest.raises(InputError, match=message):
            scale.scale(config.load(None, [*BASE, *words]))
    with pytest.raises(InputError, match=r"MODEL.TYPE: of the models anynet, regnet and effnet can be scaled, not lenet5"):
        scale.scale(config.load(None, ["MODEL.TYPE", "lenet5", "MODEL.SCALING_TYPE", "dw"]))
    assert not list(here.iterdir()), "nothing is written"
