"""--help-options tells everything, and imports no more than it tells."""

import subprocess
import sys

import pytest

from pycls import config
from pycls.config.options import CORE
from pycls.errors import InputError


def collapse(text: str) -> str:
    return " ".join(text.split())


def test_every_core_option_with_type_default_choices_and_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = config.describe(None)
    assert max(map(len, text.splitlines())) <= 100
    flat = collapse(text)
    for key, option in CORE.items():
        kind = "bool|str" if key == "TRAIN.MIXED_PRECISION" else type(option.default).__name__
        assert f"{key} {kind}" in flat, key
        assert f"= {option.default!r} {collapse(option.help)}" in flat, key
    assert "one of sgd, adam, adamw" in flat and "at least 0 and below 1" in flat
    assert "Models:" in flat and "lenet5" in flat and "Data sets:" in flat and "Heads:" in flat


def test_sections() -> None:
    optim = config.describe("OPTIM")
    assert all((key in optim) == key.startswith("OPTIM.") for key in CORE)
    assert config.describe("optim") == optim
    assert "fakenet" in config.describe("MODEL") and "MODEL.DEPTH" in config.describe("MODEL")
    assert "fakeset" in config.describe("DATA") and "DATA.ROOT" in config.describe("DATA")
    assert config.describe("OPTIM.BASE_LR").startswith("  OPTIM.BASE_LR  float = 0.1\n      learning rate")


def test_components() -> None:
    text = config.describe("FAKENET")
    assert text.startswith("model fakenet: A backbone in name only.")
    flat = collapse(text)
    assert "FAKENET.WIDTH int = 8 channels of the first layer, which the others multiply" in flat
    assert "FAKENET.STEM str = 'plain' what comes first; one of plain, deep, on" in flat
    assert "FAKENET.SIZE tuple[int, int] = (3, 3)" in flat
    assert "FAKENET.LIMIT float|None = None" in flat
    assert "DEPTH" not in text and "IN_CHANNELS" not in text
    assert "SN.STAGES  int = (required)" in config.describe("SN") and config.describe("sectionnet") == config.describe(
        "sn"
    )
    assert "no options" in config.describe("plainnet")
    assert "FAKESET.FOLD  int = 0" in config.describe("fakeset")
    assert config.describe("fakenet.width").startswith("  FAKENET.WIDTH  int = 8")


def test_heads() -> None:
    text = config.describe("HEAD")
    for part in (
        "HEAD.LR_MULT",
        "head fakehead",
        "HEAD.SCALE  float = 64.0",
        "similarity fakesim",
        "HEAD.SIMILARITY.SCALE",
        "margin fakemargin",
        "HEAD.MARGIN.MARGIN  float = 0.2",
        "criterion fakecriterion",
        "auxiliary loss fakeaux",
    ):
        assert part in text, part
    one = config.describe("HEAD.fakehead")
    assert "HEAD.MARGIN  float = 0.35" in one and "similarity" not in one
    assert "fakemargin" in config.describe("HEAD.MARGIN") and "fakesim" not in config.describe("HEAD.MARGIN")
    assert config.describe("head.margin.fakemargin").startswith("margin fakemargin")
    assert config.describe("HEAD.AUXILIARIES.fakeaux").startswith("auxiliary loss fakeaux")


def test_everything() -> None:
    text = config.describe("ALL")
    for part in ("OPTIM.BASE_LR", "FAKENET.WIDTH", "FAKESET.FOLD", "head fakehead", "CRITERION.FOCUS", "LENET5."):
        assert part in text


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("OPTIMS", "did you mean OPTIM?"),
        ("HEAD.fakehed", "did you mean HEAD.FAKEHEAD?"),
        ("FAKENT", "did you mean FAKENET?"),
        ("OPTIM.LR", "did you mean OPTIM.MIN_LR or OPTIM.BASE_LR?"),
        ("zzzzzz", "there are: BN, CUDNN, DATA,"),
    ],
)
def test_unknown(asked: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"^--help-options: there is no section or option {asked}; ") as caught:
        config.describe(asked)
    assert hint in str(caught.value)


@pytest.mark.parametrize("section", [None, "OPTIM", "MODEL", "DATA", "HEAD.NAME", "nothing"])
def test_no_torch_for_core_sections(section: str | None) -> None:
    code = f"""
import sys
from pycls.config import describe
try:
    describe({section!r})
except ValueError:
    pass
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
