"""What a good configuration becomes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pycls import config
from pycls.config import options, schema
from pycls.config.yaml_lines import ConfigValue
from pycls.registry import CRITERIA, HEADS

Write = Callable[..., str]


def test_the_tree_is_complete_and_frozen(write: Write, base: str) -> None:
    cfg = config.load(write(base))
    for key, option in options.CORE.items():
        if key.startswith(("HEAD.", "MODEL.TYPE", "TRAIN.DATASET", "OUT_DIR")):
            continue
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == option.default, key
    assert dict(cfg.FAKENET) == {
        "WIDTH": 8,
        "RATIO": 0.5,
        "STEM": "plain",
        "WIDTHS": [8, 16],
        "SIZE": (3, 3),
        "LIMIT": None,
        "STRICT": False,
    }
    assert dict(cfg.FAKESET) == {"FOLD": 0}
    assert "OTHERSET" not in cfg and "PLAINNET" not in cfg
    with pytest.raises(AttributeError):
        cfg.OPTIM.BASE_LR = 3.0


def test_defaults_are_not_shared_between_loads(write: Write, base: str) -> None:
    path = write(base)
    config.load(path).FAKENET.WIDTHS.append(99)
    config.load(path).OPTIM.STEPS.append(99)
    again = config.load(path)
    assert again.FAKENET.WIDTHS == [8, 16] and again.OPTIM.STEPS == []


def test_overrides_win_and_the_later_over_the_earlier(write: Write, base: str) -> None:
    cfg = config.load(
        write(base + "OPTIM: {BASE_LR: 0.5, LR_POLICY: steps}\n"),
        [
            "OPTIM.BASE_LR",
            "1",
            "OPTIM.STEPS",
            "[30,60]",
            "FAKENET.WIDTH=12",
            "OPTIM.BASE_LR",
            "2e-3",
            "OUT_DIR",
            "/tmp/x",
        ],
    )
    assert cfg.OPTIM.BASE_LR == 2e-3
    assert cfg.OPTIM.STEPS == [30, 60]
    assert cfg.FAKENET.WIDTH == 12
    assert cfg.OUT_DIR == "/tmp/x"


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("OPTIM.BASE_LR=1e-4", ("OPTIM", "BASE_LR"), 1e-4),
        ("OPTIM.WEIGHT_DECAY=5", ("OPTIM", "WEIGHT_DECAY"), 5.0),
        ("FAKENET.WIDTHS=(1, 2, 3)", ("FAKENET", "WIDTHS"), [1, 2, 3]),
        ("FAKENET.SIZE=[5, 7]", ("FAKENET", "SIZE"), (5, 7)),
        ("FAKENET.LIMIT=None", ("FAKENET", "LIMIT"), None),
        ("FAKENET.LIMIT=null", ("FAKENET", "LIMIT"), None),
        ("FAKENET.LIMIT=3", ("FAKENET", "LIMIT"), 3.0),
        ("FAKENET.STEM=on", ("FAKENET", "STEM"), "on"),
        ("FAKENET.STRICT=True", ("FAKENET", "STRICT"), True),
        ("OUT_DIR=2024-01-02", ("OUT_DIR",), "2024-01-02"),
        ("OUT_DIR=12", ("OUT_DIR",), "12"),
        ("OUT_DIR=None", ("OUT_DIR",), "None"),
        ("OUT_DIR=a=b #c: d", ("OUT_DIR",), "a=b #c: d"),
        ('TRAIN.WEIGHTS="quoted"', ("TRAIN", "WEIGHTS"), "quoted"),
        ("TRAIN.WEIGHTS=", ("TRAIN", "WEIGHTS"), ""),
        ("TRAIN.MIXED_PRECISION=bf16", ("TRAIN", "MIXED_PRECISION"), "bf16"),
        ("TRAIN.MIXED_PRECISION=true", ("TRAIN", "MIXED_PRECISION"), True),
        ("TRAIN.CROP_PADDING=-1", ("TRAIN", "CROP_PADDING"), -1),
        ("OPTIM={BASE_LR: 3, MOMENTUM: 0.5}", ("OPTIM", "BASE_LR"), 3.0),
    ],
)
def test_override_values_are_read_as_a_user_means_them(
    write: Write, base: str, word: str, key: tuple[str, ...], value: object
) -> None:
    path = write(base)
    key_word, _, text = word.partition("=")
    for words in ([word], [key_word, text]):
        node = config.load(path, words)
        for part in key:
            node = node[part]
        assert node == value and type(node) is type(value)


def test_yaml_values_that_yaml_reads_otherwise(write: Write, base: str) -> None:
    text = (
        base + "OPTIM: {BASE_LR: 1e-3, MAX_EPOCH: 7, WARMUP_EPOCHS: 5}\nFAKENET: {STEM: on, LIMIT: None, RATIO: 1E2}\n"
    )
    cfg = config.load(write(text))
    assert (cfg.OPTIM.BASE_LR, cfg.OPTIM.WARMUP_EPOCHS) == (1e-3, 5.0)
    assert isinstance(cfg.OPTIM.WARMUP_EPOCHS, float) and isinstance(cfg.OPTIM.MAX_EPOCH, int)
    assert (cfg.FAKENET.STEM, cfg.FAKENET.LIMIT, cfg.FAKENET.RATIO) == ("on", None, 100.0)


def test_anchors_and_merges(write: Write, base: str) -> None:
    cfg = config.load(
        write(base + "BN: &b {EPS: 0.1}\nOPTIM: {BASE_LR: &lr 0.3, MIN_LR: *lr}\nTEST: {<<: {TOP_K: 3}}\n")
    )
    assert (cfg.BN.EPS, cfg.OPTIM.MIN_LR, cfg.TEST.TOP_K) == (0.1, 0.3, 3)


def test_empty_file_and_empty_sections(write: Write) -> None:
    cfg = config.load(write(""), ["MODEL.TYPE", "plainnet", "HEAD.NAME", "barehead"])
    assert cfg.MODEL.TYPE == "plainnet"
    cfg = config.load(write("MODEL: {TYPE: plainnet}\nOPTIM:\nPLAINNET:\nHEAD:\n  NAME: barehead\n  SIMILARITY: {}\n"))
    assert "PLAINNET" not in cfg


def test_without_a_file() -> None:
    cfg = config.load(None, ["MODEL.TYPE", "fakenet", "HEAD.NAME", "barehead", "TRAIN.DATASET", "fakeset"])
    assert cfg.OUT_DIR == "runs/fakenet"


def test_out_dir_is_named_after_the_file(write: Write, base: str) -> None:
    assert config.load(write(base, "some/deep/lenet5.rbf.yaml")).OUT_DIR == "runs/lenet5.rbf"
    assert config.load(write(base + "OUT_DIR: here\n")).OUT_DIR == "here"


def test_a_second_data_set_brings_its_section(write: Write, base: str) -> None:
    cfg = config.load(write(base + "TEST: {DATASET: otherset}\nOTHERSET: {SHADE: 2}\n"))
    assert cfg.OTHERSET.SHADE == 2.0 and cfg.FAKESET.FOLD == 0
    assert config.dataset_arguments(cfg, "otherset", root="r", split="test") == {
        "shade": 2.0,
        "root": "r",
        "split": "test",
    }
    same = config.load(write(base + "TEST: {DATASET: fakeset}\n"))
    assert "OTHERSET" not in same


def test_section_attribute(write: Write, base: str) -> None:
    cfg = config.load(write(base + "SN: {STAGES: 3}\n"), ["MODEL.TYPE", "sectionnet"])
    assert cfg.SN.STAGES == 3
    assert config.model_arguments(cfg, in_channels=1) == {"stages": 3}


def test_model_arguments(write: Write, base: str) -> None:
    path = write(base + "BN: {EPS: 0.5}\n")
    cfg = config.load(path, ["MODEL.DEPTH", "4", "FAKENET.WIDTH", "3"])
    arguments = config.model_arguments(cfg, in_channels=3, image_size=32)
    assert arguments == {
        "in_channels": 3,
        "depth": 4,
        "bn_eps": 0.5,
        "width": 3,
        "ratio": 0.5,
        "stem": "plain",
        "widths": [8, 16],
        "size": (3, 3),
        "limit": None,
        "strict": False,
    }
    assert "depth" not in config.model_arguments(config.load(path), in_channels=3)
    plain = config.load(path, ["MODEL.TYPE", "plainnet"])
    assert config.model_arguments(plain, in_channels=3, image_size=32) == {"in_channels": 3, "image_size": 32}


def test_other_arguments(write: Write, base: str) -> None:
    cfg = config.load(write(base), ["DATA.DOWNLOAD", "False", "HEAD.CRITERION.NAME", "fakecriterion"])
    assert config.dataset_arguments(cfg, "fakeset", root="r", split="val") == {
        "root": "r",
        "split": "val",
        "download": False,
        "fold": 0,
    }
    supplied = {"in_features": 2, "num_classes": 3, "class_counts": [1, 2, 3]}
    assert config.head_arguments(cfg, **supplied) == {"in_features": 2, "num_classes": 3, "scale": 64.0, "margin": 0.35}
    assert config.part_arguments(CRITERIA, cfg.HEAD.CRITERION, **supplied) == {"class_counts": [1, 2, 3], "focus": 2.0}
    assert config.arguments(
        cfg.HEAD, schema.options_of(HEADS.get("fakehead"), frozenset({"in_features", "num_classes"}))
    ) == {
        "scale": 64.0,
        "margin": 0.35,
    }


def test_what_public_yaml_files_write(write: Write) -> None:
    """The layout and value forms of pycls's files, with one of our models."""
    text = """\
MODEL:
  TYPE: fakenet
  NUM_CLASSES: 1000
BN:
  ZERO_INIT_FINAL_GAMMA: True
OPTIM:
  BASE_LR: 0.2
  LR_POLICY: cos
  MAX_EPOCH: 100
  MOMENTUM: 0.9
  NESTEROV: True
  WARMUP_EPOCHS: 5
  WEIGHT_DECAY: 5e-5
TRAIN:
  DATASET: fakeset
  IM_SIZE: 224
  BATCH_SIZE: 256
TEST:
  DATASET: fakeset
  IM_SIZE: 256
  BATCH_SIZE: 200
NUM_GPUS: 8
OUT_DIR: .
"""
    cfg = config.load(write(text), ["HEAD.NAME", "barehead"])
    assert cfg.OPTIM.WEIGHT_DECAY == 5e-5 and cfg.OUT_DIR == "." and cfg.NUM_GPUS == 8


def test_defaults_of_the_core_are_valid() -> None:
    for key, option in options.CORE.items():
        given = ConfigValue(option.default, "here:1")
        if isinstance(option.default, list):
            given = ConfigValue([], "here:1")
        assert schema.convert(given, option, key) == option.default
        assert option.help and not Path(option.help).is_absolute()
