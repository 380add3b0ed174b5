"""pycls's options: each is known here by its name, by another, or as one without effect; and which it is, is said."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from yacs.config import CfgNode

from pycls import build, cli, config
from pycls.config import aliases, components
from pycls.config.options import CORE, Option
from pycls.errors import InputError
from pycls.registry import HEADS, MODELS

Write = Callable[..., str]
FILES = Path(__file__).parent / "pycls"
RBF = "MODEL: {TYPE: fakenet, LOGITS_TYPE: rbf_logit, RBF_SCALE: 30, RBF_GAMMA: 8}\nTRAIN: {DATASET: fakeset}\n"


def load(path: str, *overrides: str) -> tuple[CfgNode, list[str]]:
    notices: list[str] = []
    return config.load(path, overrides, notify=notices.append), notices


def leaves_of(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in tree.items():
        leaves |= leaves_of(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return leaves


DUMPED = leaves_of(yaml.safe_load((FILES / "dumped.yaml").read_text(encoding="utf-8")))


def option_of(key: str) -> Option | None:
    """The option of that name, everybody's or a family's."""
    section, _, option = key.partition(".")
    models = [name for name, own in aliases.SECTIONS.items() if own == section]
    options = components.component_options(MODELS, models[0]) if models else {}
    return CORE.get(key) or options.get(option)


@pytest.mark.parametrize("key", DUMPED)
def test_every_option_of_pycls_is_known(key: str) -> None:
    assert (option_of(key) is None) == (key in aliases.TABLE)


@pytest.mark.parametrize("old", aliases.TABLE)
def test_a_row_leads_to_an_option_or_says_why_not(old: str) -> None:
    row = aliases.TABLE[old]
    assert old not in CORE and bool(row.here or row.why)
    if row.here and row.here not in CORE:
        section, _, option = row.here.partition(".")
        registry, name = (HEADS, "rbf_softmax") if section == "HEAD" else (MODELS, "effnet")
        assert option in components.component_options(registry, name)
    assert config.describe(old) == f"  {aliases.describe(old)}" and (row.here or "no effect") in aliases.describe(old)


def table_under(heading: str) -> list[str]:
    """The rows of a table of docs/config.md, by the start of its heading."""
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    return [line for line in page.partition(heading)[2].partition("\n\n")[0].splitlines() if line.startswith("| `")]


def test_the_page_has_the_table() -> None:
    here = {key: f"`{row.here}`" if row.here else "no effect" for key, row in aliases.TABLE.items()}
    assert table_under("| option of pycls |") == [
        f"| `{key}` | {here[key]} | {row.why} |" for key, row in aliases.TABLE.items()
    ]


def test_the_page_has_the_defaults_that_differ() -> None:
    shown = dict(re.match(r"\| `([\w.]+)` \| (\S+) \|", row).groups() for row in table_under("| option | pycls |"))
    defaults = DUMPED | {"TRAIN.DATASET": "none", "TEST.SPLIT": "val", "TRAIN.IM_SIZE": 224, "TEST.IM_SIZE": 256}
    own = ("MODEL.TYPE", "MODEL.DEPTH", "TEST.DATASET", "EN.")  # the file's, or what has no default in pycls
    differ = {key: str(value) for key, value in defaults.items()
              if not key.startswith(own) and (option := option_of(key)) and not is_default(option, value)}  # fmt: skip
    assert shown == differ


def is_default(option: Option, value: object) -> bool:
    return option.default == (tuple(value) if isinstance(option.default, tuple) else value)


def test_options_of_the_rbf_repository(write: Write) -> None:
    cfg, notices = load(write(RBF))
    assert (cfg.HEAD.NAME, cfg.HEAD.SCALE, cfg.HEAD.GAMMA) == ("rbf_softmax", 30.0, 8.0)
    assert notices == [
        "a.yaml:1: MODEL.LOGITS_TYPE rbf_logit is HEAD.NAME rbf_softmax here",
        "a.yaml:1: MODEL.RBF_SCALE 30 is HEAD.SCALE 30 here",
        "a.yaml:1: MODEL.RBF_GAMMA 8 is HEAD.GAMMA 8 here "
        "(the published code took RBF_SCALE for it: HEAD.GAMMA 35 repeats its runs)",
    ]
    assert load(write(config.dump(cfg), "b.yaml")) == (cfg.clone(), [])


@pytest.mark.parametrize(
    ("logits", "reason"),
    [("''", "MODEL.LOGITS_TYPE has no effect here: HEAD says which head it is"), ("rbf_logit", None)],
)
def test_a_head_on_the_command_line_wins(write: Write, logits: str, reason: str | None) -> None:
    cfg, notices = load(write(RBF.replace("rbf_logit", logits)), "HEAD.NAME", "fakehead")
    assert (cfg.HEAD.NAME, cfg.HEAD.SCALE) == ("fakehead", 64.0)
    assert notices == [
        f"a.yaml:1: {reason or 'MODEL.LOGITS_TYPE has no effect here: override HEAD.NAME is the same option'}",
        "a.yaml:1: MODEL.RBF_SCALE has no effect here: HEAD.NAME is fakehead",
        "a.yaml:1: MODEL.RBF_GAMMA has no effect here: HEAD.NAME is fakehead",
    ]


def test_an_old_name_on_the_command_line_wins(write: Write, base: str) -> None:
    cfg, notices = load(write(base + "OUT_DIR: here\n"), "OUTPUT_DIR", "there")
    assert cfg.OUT_DIR == "there"
    assert notices == [
        "a.yaml:4: OUT_DIR has no effect: override OUTPUT_DIR is the same option",
        "override OUTPUT_DIR there is OUT_DIR there here",
    ]


def test_decay_of_an_epoch(write: Write, base: str) -> None:
    path = write(base + "OPTIM: {LR_POLICY: exp, GAMMA: 0.5, MAX_EPOCH: 3}\n")
    assert load(path)[0].OPTIM.EXP_RATE == 0.125
    assert pytest.approx(0.01) == load(path, "OPTIM.GAMMA", "1e-1", "OPTIM.MAX_EPOCH", "2")[0].OPTIM.EXP_RATE
    cfg, notices = load(path, "OPTIM.LR_POLICY", "cos")
    assert CORE["OPTIM.EXP_RATE"].default == cfg.OPTIM.EXP_RATE
    assert notices == ["a.yaml:4: OPTIM.GAMMA has no effect here: OPTIM.LR_POLICY is cos"]


def test_a_loss_by_name(write: Write, base: str) -> None:
    assert load(write(base), "MODEL.LOSS_FUN", "fakecriterion")[0].HEAD.CRITERION.NAME == "fakecriterion"
    cfg, notices = load(write(base), "MODEL.LOSS_FUN", "cross_entropy")
    assert cfg.HEAD.CRITERION.NAME == ""
    assert notices == [
        "override MODEL.LOSS_FUN has no effect here: the loss is the head's, which is cross entropy unless HEAD says otherwise"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MEM:\n  RELU_INPLACE: True\n", "a.yaml:5: MEM.RELU_INPLACE has no effect here: "),
        ("MEM:\n", "a.yaml:4: MEM has no effect here: "),
        ("FSDP: {ENABLED: True}", "a.yaml:4: FSDP.ENABLED has no effect here: PARALLEL.MODE fsdp shards a model"),
        ("PORT_RANGE: [1, 2]", "a.yaml:4: PORT_RANGE has no effect here: "),
        ("TRAIN.START_CHECKPOINT: x.pyth", "a.yaml:4: TRAIN.START_CHECKPOINT x.pyth is TRAIN.WEIGHTS x.pyth here"),
    ],
)
def test_what_is_said(write: Write, base: str, text: str, expected: str) -> None:
    notices = load(write(base + text))[1]
    assert len(notices) == 1 and notices[0].startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "OUTPUT_DIR: x\nOUT_DIR: x\n",
            "a.yaml:4: OUTPUT_DIR and a.yaml:5: OUT_DIR are the same option; leave one out",
        ),
        ("OUTPUT_DIR: 7\n", "a.yaml:4: OUTPUT_DIR (here OUT_DIR): expected a string (str), found 7 (int); put it in quotes"),
        (
            "OPTIM: {LR_POLICY: exp, GAMMA: fast}",
            "a.yaml:4: OPTIM.GAMMA: expected a number (float), found 'fast' (str)",
        ),
        (
            "OPTIM: {LR_POLICY: exp, GAMMA: 0.9, MAX_EPOCH: long}",
            "a.yaml:4: OPTIM.MAX_EPOCH: expected a whole number (int), found 'long' (str)",
        ),
    ],
)
def test_mistakes_name_what_was_written(write: Write, base: str, text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(write(base + text))
    assert str(caught.value) == expected


def test_a_head_that_the_rbf_repository_does_not_have(write: Write) -> None:
    with pytest.raises(InputError, match=r"MODEL.LOGITS_TYPE \(here HEAD.NAME\): there is no head named 'rbf'"):
        load(write(RBF.replace("rbf_logit", "rbf")))


def test_a_configuration_that_pycls_wrote_down(write: Write) -> None:
    cfg, notices = load(str(FILES / "dumped.yaml"))
    assert (cfg.MODEL.DEPTH, cfg.RESNET.STRIDE_1X1, cfg.OPTIM.EMA_UPDATE_PERIOD) == (56, True, 32)
    assert cfg.BN.USE_PRECISE_STATS and cfg.TEST.SPLIT == "test" and cfg.OUT_DIR == "/tmp"
    assert (cfg.LAUNCH.MODE, cfg.LAUNCH.GPU_TYPE, cfg.LAUNCH.MEM_PER_GPU) == ("local", "volta", 60)
    assert notices[0].endswith("dumped.yaml:3: ANYNET, EN, REGNET, VIT: no effect: MODEL.TYPE is resnet")
    quiet = {line.partition(": ")[2].partition(" ")[0] for line in notices[1:]}
    assert quiet == {key for key in aliases.TABLE if key in DUMPED}


def test_a_section_of_another_model_is_a_mistake_elsewhere(write: Write, base: str) -> None:
    with pytest.raises(InputError, match=r"RESNET.STRIDE_1X1 has no effect: MODEL.TYPE is fakenet"):
        load(write(base + "RESNET: {STRIDE_1X1: True}\n"))


def test_a_file_for_a_vision_transformer(write: Write) -> None:
    cfg, notices = load(str(FILES / "vit_h_fsdp.yaml"))
    assert (cfg.VIT.CLASSIFIER_TYPE, cfg.VIT.MLP_DIM, cfg.LN.EPS) == ("pooled", 5120, 1e-6)
    assert cfg.LN.USE_CUSTOM_WEIGHT_DECAY and cfg.OPTIM.BIAS_USE_CUSTOM_WEIGHT_DECAY and cfg.TRAIN.MIXED_PRECISION is True
    model = build.build_model(cfg, 3, 256, 1000, storage=False)
    # ViT-H/16 at 256: 32 layers of 4 x 1280^2 + 2 x 1280 x 5120 weights, biases and norms, the stem, 256 positions
    layer = 4 * 1280 * 1280 + 4 * 1280 + 2 * 1280 * 5120 + 1280 + 5120 + 4 * 1280
    assert sum(p.numel() for p in model.backbone.parameters()) == (
        32 * layer + (16 * 16 * 3 + 1) * 1280 + 256 * 1280 + 2 * 1280
    )
    by_decay = {g["weight_decay"]: g["params"] for g in build.build_optimizer(cfg, model).param_groups}
    assert set(by_decay) == {0.24, 0.0} and all(p.dim() > 1 for p in by_decay[0.24])
    assert [line.split()[1] for line in notices] == [
        "OPTIM.MTA", "FSDP.ENABLED", "FSDP.DO_NOT_RESHARD_AFTER_FW", "FSDP.MIXED_PRECISION", "FSDP.LAYER_NORM_FP32",
        "LAUNCH.GPU_TYPE",
    ]  # fmt: skip


def test_a_file_of_2019() -> None:
    cfg, notices = load(str(FILES / "resnet56_2019.yaml"))
    assert (cfg.MODEL.DEPTH, cfg.BN.NUM_SAMPLES_PRECISE, cfg.OUT_DIR, cfg.CUDNN.BENCHMARK) == (56, 1024, ".", False)
    assert len(notices) == 7


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [
        ({}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2", "PYCLS_LAUNCHER_PID": "1"}, False),
    ],
)
def test_notices_are_said_once_and_not_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str], speaks: bool
) -> None:
    for name in ("RANK", "WORLD_SIZE", "PYCLS_LAUNCHER_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setitem(os.environ, name, value)
    cli._notice("a.yaml:1: PORT has no effect here")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == ("notice: a.yaml:1: PORT has no effect here\n" if speaks else "")


def test_second_names_of_options_and_values(write: Write) -> None:
    """They mean the same, without a notice, and what is written has the first name."""
    path = write("MODEL: {TYPE: fakenet}\nTRAIN: {DATASET: fakeset, SAMPLER: uniform}\nHEAD: {NAME: fakehead}\n"
                 "DATA: {NOISE: {KIND: adjacent_classes, RATE: 0.1}}\n")  # fmt: skip
    cfg, notices = load(path, "TEST.SAVE_CSV", "True", "MODEL.NUM_CLASSES", "10")
    assert (cfg.TRAIN.SAMPLER, cfg.DATA.NOISE.KIND, cfg.TEST.TABLES, notices) == ("instance", "blocks", True, [])
    dumped = write(config.dump(cfg))
    assert config.load(dumped) == cfg == load(path, "TEST.TABLES", "True", "MODEL.NUM_CLASSES", "10")[0]
    with pytest.raises(InputError, match=r"override TEST\.SAVE_CSV and override TEST\.TABLES are the same option"):
        load(path, "TEST.SAVE_CSV", "True", "TEST.TABLES", "True")
    with pytest.raises(InputError, match=r"override TEST\.SAVE_CSV \(here TEST\.TABLES\): expected True or False"):
        load(path, "TEST.SAVE_CSV", "maybe")
    assert "another name of blocks" in config.describe("DATA.NOISE.KIND")
    assert "another name of TEST.TABLES" in config.describe("TEST.SAVE_CSV")
