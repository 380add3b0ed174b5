"""Every mistake is one line that names the place, what was found and what would be right."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pycls import config
from pycls.errors import InputError
from pycls.registry import DATASETS, MODELS

Write = Callable[..., str]


def message_of(path: str | None, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        config.load(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OPTIM:\n  BASE_LRR: 1\n", "a.yaml:5: unknown option OPTIM.BASE_LRR; did you mean OPTIM.BASE_LR?"),
        ("OPTIM:\n\n  BASE_LR: fast\n", "a.yaml:6: OPTIM.BASE_LR: expected a number (float), found 'fast' (str)"),
        ("OPTIM: {BASE_LR: '0.1'}", "a.yaml:4: OPTIM.BASE_LR: expected a number (float), found '0.1' (str)"),
        ("OPTIM: {BASE_LR: .nan}", "a.yaml:4: OPTIM.BASE_LR: expected a number (float), found nan (float)"),
        ("OPTIM: {BASE_LR: .inf}", "a.yaml:4: OPTIM.BASE_LR: expected a finite number, found inf"),
        ("OPTIM: {BASE_LR: 1e400}", "a.yaml:4: OPTIM.BASE_LR: expected a finite number, found inf"),
        ("OPTIM: {BASE_LR: -1}", "a.yaml:4: OPTIM.BASE_LR: expected above 0, found -1.0"),
        ("OPTIM: {MOMENTUM: 2}", "a.yaml:4: OPTIM.MOMENTUM: expected at least 0 and below 1, found 2.0"),
        ("OPTIM: {MAX_EPOCH: 1.5}", "a.yaml:4: OPTIM.MAX_EPOCH: expected a whole number (int), found 1.5 (float)"),
        ("OPTIM: {MAX_EPOCH: true}", "a.yaml:4: OPTIM.MAX_EPOCH: expected a whole number (int), found True (bool)"),
        ("OPTIM: {NESTEROV: 1}", "a.yaml:4: OPTIM.NESTEROV: expected True or False (bool), found 1 (int)"),
        ("OPTIM: {STEPS: 30}", "a.yaml:4: OPTIM.STEPS: expected a list (list[int]), found 30 (int)"),
        ("OPTIM: {STEPS: [30, a]}", "a.yaml:4: OPTIM.STEPS: expected a list (list[int]), found [30, 'a']"),
        ("OPTIM: 3", "a.yaml:4: OPTIM is a section: expected its options, found 3 (int)"),
        ("OUT_DIR: 2024", "a.yaml:4: OUT_DIR: expected a string (str), found 2024 (int); put it in quotes"),
        ("OUT_DIR:", "a.yaml:4: OUT_DIR: expected a string (str), found None"),
        (
            "OPTIM: {OPTIMIZER: sdg}",
            "a.yaml:4: OPTIM.OPTIMIZER: expected one of sgd, adam, adamw, found 'sdg' (str); did you mean 'sgd'?",
        ),
        ("TRAIN.X: 1", "a.yaml:4: unknown option TRAIN.X"),
        ("BASE_LR: 1", "a.yaml:4: unknown option BASE_LR; did you mean OPTIM.BASE_LR?"),
        ("optim: {base_lr: 1}", "a.yaml:4: unknown option optim.base_lr; did you mean OPTIM.BASE_LR?"),
        ("OPTIMM: {BASE_LR: 1}", "a.yaml:4: unknown option OPTIMM.BASE_LR; did you mean OPTIM.BASE_LR?"),
        ("BN: {BASE_LR: 1}", "a.yaml:4: unknown option BN.BASE_LR; did you mean OPTIM.BASE_LR?"),
        ("NOTHING_LIKE_THIS: {X: 1}", "a.yaml:4: unknown option NOTHING_LIKE_THIS.X"),
        ("FAKENET:\n  WIDTH: wide\n", "a.yaml:5: FAKENET.WIDTH: expected a whole number (int), found 'wide' (str)"),
        (
            "FAKENET: {WIDHT: 3}",
            "a.yaml:4: unknown option FAKENET.WIDHT of the model 'fakenet'; did you mean FAKENET.WIDTH?",
        ),
        ("FAKENET: {STEM: 5}", "a.yaml:4: FAKENET.STEM: expected one of plain, deep, on, found 5 (int)"),
        ("FAKENET: {SIZE: [1]}", "a.yaml:4: FAKENET.SIZE: expected a list (tuple[int, int]), found [1]"),
        ("FAKENET: {LIMIT: big}", "a.yaml:4: FAKENET.LIMIT: expected a number (float) or None, found 'big' (str)"),
        (
            "FAKESET: {FOLDS: 3}",
            "a.yaml:4: unknown option FAKESET.FOLDS of the data set 'fakeset'; did you mean FAKESET.FOLD?",
        ),
        ("SN: {STAGES: 3}", "a.yaml:4: SN.STAGES has no effect: MODEL.TYPE is fakenet"),
        ("PLAINNET: {X: 3}", "a.yaml:4: PLAINNET.X has no effect: MODEL.TYPE is fakenet"),
        ("RESNET: {WIDTH_PER_GROUP: 4}", "a.yaml:4: RESNET.WIDTH_PER_GROUP has no effect: MODEL.TYPE is fakenet"),
        ("OTHERSET: {SHADE: 3}", "a.yaml:4: OTHERSET.SHADE has no effect: TRAIN.DATASET is fakeset"),
        (
            "IMPORTS: [not_a_module_of_this_machine]",
            "a.yaml:4: IMPORTS: cannot import 'not_a_module_of_this_machine': "
            "ModuleNotFoundError: No module named 'not_a_module_of_this_machine'",
        ),
        ("IMPORTS: heads", "a.yaml:4: IMPORTS: expected a list (list[str]), found 'heads' (str)"),
    ],
)
def test_a_line_of_the_file(write: Write, base: str, text: str, expected: str) -> None:
    assert message_of(write(base + text)) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["OPTIM.BASE_LR", "fast"], "override OPTIM.BASE_LR: expected a number (float), found 'fast' (str)"),
        (["OPTIM.BASE_LRR=1"], "unknown option OPTIM.BASE_LRR (override); did you mean OPTIM.BASE_LR?"),
        (["OPTIM.LR", "1"], "unknown option OPTIM.LR (override); did you mean OPTIM.MIN_LR or OPTIM.BASE_LR?"),
        (["BATCH_SIZE", "1"], "unknown option BATCH_SIZE (override); did you mean TEST.BATCH_SIZE or TRAIN.BATCH_SIZE?"),
        (["HEAD", "fakehead"], "override HEAD is a section: expected its options, found 'fakehead' (str)"),
        (["OPTIM.BASE_LR"], "override OPTIM.BASE_LR has no value"),
        (["--mode", "test"], "override --mode: flags come before the overrides (KEY VALUE ...)"),
        (["0.1"], "override 0.1: expected KEY VALUE or KEY=VALUE, such as OPTIM.BASE_LR 0.1"),
        (["OPTIM.STEPS", "[30"], "override OPTIM.STEPS: expected a list (list[int]), found '[30' (str)"),
        (["OPTIM.BASE_LR.X", "1"], "unknown option OPTIM.BASE_LR.X (override); did you mean OPTIM.BASE_LR?"),
        (
            ["TRAIN.MIXED_PRECISION", "1"],
            "override TRAIN.MIXED_PRECISION: expected one of False, True, bf16, fp16, found 1 (int)",
        ),
        (["MODEL.TYPE", "fakent"], "override MODEL.TYPE: there is no model named 'fakent'; did you mean 'fakenet'"),
        (
            ["TRAIN.DATASET", "fakset"],
            "override TRAIN.DATASET: there is no data set named 'fakset'; did you mean 'fakeset'",
        ),
        (
            ["TEST.DATASET", "fakset"],
            "override TEST.DATASET: there is no data set named 'fakset'; did you mean 'fakeset'",
        ),
        (["MODEL.TYPE", ""], "override MODEL.TYPE must name the backbone; there are: "),
        (["MODEL.DEPTH", "3"], "override MODEL.DEPTH: expected one of 2, 4, found 3 (int)"),
        (
            ["MODEL.TYPE", "plainnet", "MODEL.DEPTH", "3"],
            "override MODEL.DEPTH has no effect: the model 'plainnet' does not come in depths",
        ),
        (
            ["MODEL.TYPE", "plainnet", "PLAINNET.X", "3"],
            "unknown option PLAINNET.X of the model 'plainnet' (override); it has no options",
        ),
        (["MODEL.TYPE", "sectionnet"], "SN.STAGES must be given: it has no default (how many; it must be given.)"),
    ],
)
def test_an_override(write: Write, base: str, words: list[str], expected: str) -> None:
    assert message_of(write(base), *words).startswith(expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["NUM_PROCS", "3"], "TRAIN.BATCH_SIZE: 128 cannot be divided by NUM_PROCS 3; 126 or 129 can"),
        (["NUM_GPUS", "3"], "TRAIN.BATCH_SIZE: 128 cannot be divided by NUM_GPUS 3; 126 or 129 can"),
        (
            ["TRAIN.BATCH_SIZE", "8", "TRAIN.ACCUM_STEPS", "3"],
            "override TRAIN.BATCH_SIZE: 8 cannot be divided by TRAIN.ACCUM_STEPS 3; 6 or 9 can",
        ),
        (
            ["TRAIN.BATCH_SIZE", "2", "TRAIN.ACCUM_STEPS", "2", "NUM_PROCS", "2"],
            "override TRAIN.BATCH_SIZE: 2 cannot be divided by NUM_PROCS 2 x TRAIN.ACCUM_STEPS 2; 4 can",
        ),
        (["OPTIM.STEPS", "[3]"], "override OPTIM.STEPS has no effect: OPTIM.LR_POLICY is cos; it belongs to steps"),
        (
            ["OPTIM.LR_POLICY", "steps", "OPTIM.STEPS", "[3,3]"],
            "override OPTIM.STEPS: expected epochs from 0 that increase, found [3, 3]",
        ),
        (
            ["OPTIM.LR_POLICY", "steps", "OPTIM.STEPS", "[-3,3]"],
            "override OPTIM.STEPS: expected at least 0, found -3",
        ),
        (
            ["TRAIN.SPLIT", "trainval"],
            "override TRAIN.SPLIT: TRAIN.SPLIT trainval contains the val images that TRAIN.EVAL_SPLIT "
            "evaluates on; set TRAIN.EVAL_SPLIT to none or test",
        ),
        (
            ["TRAIN.SPLIT", "test", "TRAIN.EVAL_SPLIT", "test"],
            "override TRAIN.EVAL_SPLIT: TRAIN.SPLIT test contains the test "
            "images that TRAIN.EVAL_SPLIT evaluates on; set TRAIN.EVAL_SPLIT to none or val",
        ),
        (
            ["DATA_LOADER.DECODER", "gpu", "DEVICE", "cpu"],
            "override DATA_LOADER.DECODER: gpu needs a CUDA GPU, and DEVICE is cpu; auto and pillow decode anywhere",
        ),
    ],
)
def test_contradictions(write: Write, base: str, words: list[str], expected: str) -> None:
    assert message_of(write(base), *words) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["DEVICE", "cpu", "NUM_GPUS", "3"],
        ["DEVICE", "cuda", "NUM_PROCS", "3"],
        ["DEVICE", "cuda", "DATA_LOADER.DECODER", "gpu"],
        ["DEVICE", "auto", "DATA_LOADER.DECODER", "gpu"],
        ["DEVICE", "mps", "NUM_PROCS", "3", "NUM_GPUS", "3"],
        ["TRAIN.MIXUP_ALPHA", "1", "TRAIN.CUTMIX_ALPHA", "1"],
        ["TRAIN.SPLIT", "trainval", "TRAIN.EVAL_SPLIT", "none"],
        ["TRAIN.SPLIT", "trainval", "TRAIN.EVAL_SPLIT", "test"],
        ["OPTIM.LR_POLICY", "steps", "OPTIM.STEPS", "[0, 30, 60]"],
        ["OPTIM.LR_POLICY", "steps"],
    ],
)
def test_no_contradiction(write: Write, base: str, words: list[str]) -> None:
    config.load(write(base), words)


def test_model_type_missing() -> None:
    text = message_of(None)
    assert text.startswith("MODEL.TYPE must name the backbone; there are: ")
    assert "fakenet" in text and "lenet5" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A: [1\nB: 2\n", "a.yaml:2:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("A:\n\tB: 1\n", "a.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token"),
        ("A: 1\n---\nB: 1\n", "a.yaml:2:1: not valid YAML: but found another document"),
        (
            "A: !!python/object:os.system {}\n",
            "a.yaml:1: a configuration has no values of the kind tag:yaml.org,2002:python/object",
        ),
        ("A: !x 1\n", "a.yaml:1:4: not valid YAML: could not determine a constructor for the tag '!x'"),
        ("A: 1\n\x01", "a.yaml:2: not valid YAML: special characters are not allowed"),
        ("A: *b\n", "a.yaml:1:4: not valid YAML: found undefined alias 'b'"),
        ("A: 2024-13-45\n", "a.yaml: not valid YAML: month must be in 1..12"),
        ("A: &a [*a]\n", "a.yaml:1: this value contains itself"),
        ("- 1\n", "a.yaml:1: expected sections with options (KEY: value), found a list"),
        ("just words\n", "a.yaml:1: expected sections with options (KEY: value), found 'just words'"),
        ("[1]: 2\n", "a.yaml:1: a key must be a word"),
        ("OPTIM:\n  BASE_LR: 1\n  MOMENTUM: 1\n  BASE_LR: 2\n", "a.yaml:4: BASE_LR is given twice, first in line 2"),
        ("OPTIM: {}\nTRAIN: {}\nOPTIM: {}\n", "a.yaml:3: OPTIM is given twice, first in line 1"),
    ],
)
def test_what_is_no_configuration(write: Write, text: str, expected: str) -> None:
    assert message_of(write(text)).startswith(expected)


def test_files_that_cannot_be_read(write: Write) -> None:
    write("", "configs/lenet5_rbf.yaml")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert message_of("configs/lenet_rbf.yaml") == (
        "no such file: configs/lenet_rbf.yaml; did you mean configs/lenet5_rbf.yaml?"
    )
    assert message_of("nowhere/x.yaml") == "no such file: nowhere/x.yaml"
    assert message_of("configs") == "cannot read configs: Is a directory"
    assert message_of("binary.yaml") == "binary.yaml is not a YAML file: byte 0 is not UTF-8 text"


def test_components_that_take_names_of_others(monkeypatch: pytest.MonkeyPatch, write: Write, base: str) -> None:
    def train(x: int = 1) -> None: ...

    def twin(x: int = 1) -> None: ...

    def untyped(layer: Callable[[], None]) -> None: ...

    twin.section = "FAKENET"  # type: ignore[attr-defined]
    monkeypatch.setitem(MODELS._entries, "train", train)
    monkeypatch.setitem(DATASETS._entries, "twin", twin)
    monkeypatch.setitem(MODELS._entries, "untyped", untyped)
    path = write(base)
    assert message_of(path, "MODEL.TYPE", "train") == (
        "the model 'train' must name another section (section = ...): TRAIN is taken"
    )
    assert message_of(path, "TRAIN.DATASET", "twin") == (
        "MODEL.TYPE fakenet and TRAIN.DATASET twin have the same section, FAKENET"
    )
    assert "untyped cannot be configured: its argument 'layer' has no type that YAML can hold" in message_of(
        path, "MODEL.TYPE", "untyped"
    )
