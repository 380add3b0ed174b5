"""An option that is set and changes nothing is said so in one line, with its place; what is left alone never is."""

from collections.abc import Callable

import pytest

from pycls import config
from pycls.config import components, no_effect
from pycls.config.options import CORE
from pycls.registry import AUXILIARIES, CRITERIA, DATASETS, HEADS, MARGINS, MODELS, SIMILARITIES

Write = Callable[..., str]
BASE = "MODEL: {TYPE: lenet5}\n"


def said(path: str, *overrides: object) -> list[str]:
    lines: list[str] = []
    config.load(path, list(map(str, overrides)), notify=lines.append)
    return lines


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("OPTIM.MOMENTUM 0.9 OPTIM.OPTIMIZER adam",
         "override OPTIM.MOMENTUM has no effect: OPTIM.OPTIMIZER is adam; it belongs to sgd"),
        ("OPTIM.NESTEROV True OPTIM.OPTIMIZER adamw",
         "override OPTIM.NESTEROV has no effect: OPTIM.OPTIMIZER is adamw; it belongs to sgd"),
        ("OPTIM.NESTEROV True OPTIM.MOMENTUM 0", "override OPTIM.NESTEROV has no effect: OPTIM.MOMENTUM is 0.0"),
        ("OPTIM.NESTEROV True OPTIM.DAMPENING 0.1", "override OPTIM.NESTEROV has no effect: OPTIM.DAMPENING is 0.1"),
        ("OPTIM.BETA2 0.99", "override OPTIM.BETA2 has no effect: OPTIM.OPTIMIZER is sgd; it belongs to adam or adamw"),
        ("OPTIM.WARMUP_FACTOR 0.5", "override OPTIM.WARMUP_FACTOR has no effect: OPTIM.WARMUP_EPOCHS is 0.0"),
        ("OPTIM.EMA_ALPHA 0.1", "override OPTIM.EMA_ALPHA has no effect: OPTIM.EMA_UPDATE_PERIOD is 0"),
        ("OPTIM.LR_MULT 0.1", "override OPTIM.LR_MULT has no effect: OPTIM.LR_POLICY is cos; it belongs to steps"),
        ("OPTIM.LR_MULT 0.1 OPTIM.LR_POLICY steps", "override OPTIM.LR_MULT has no effect: OPTIM.STEPS is []"),
        ("OPTIM.EXP_RATE 0.1", "override OPTIM.EXP_RATE has no effect: OPTIM.LR_POLICY is cos; it belongs to exp"),
        ("OPTIM.EXP_RATE 0.1 OPTIM.LR_POLICY exp OPTIM.MIN_LR 0.2",
         "override OPTIM.EXP_RATE has no effect: OPTIM.MIN_LR is 0.2"),
        ("OPTIM.MIN_LR 0.1 OPTIM.LR_POLICY steps OPTIM.STEPS [1]",
         "override OPTIM.MIN_LR has no effect: OPTIM.LR_POLICY is steps; it belongs to cos or lin or exp"),
        ("OPTIM.LR_POLICY steps OPTIM.STEPS [3,10,12] OPTIM.MAX_EPOCH 10",
         "override OPTIM.STEPS has no effect at 10, 12: OPTIM.MAX_EPOCH is 10"),
        ("OPTIM.WARMUP_EPOCHS 5 OPTIM.MAX_EPOCH 3",
         "override OPTIM.WARMUP_EPOCHS is 5, and OPTIM.MAX_EPOCH 3: the learning rate never reaches OPTIM.BASE_LR"),
        ("TRAIN.IM_SIZES [[0,28],[9,32]] OPTIM.MAX_EPOCH 5",
         "override TRAIN.IM_SIZES has no effect from epoch 9 on: OPTIM.MAX_EPOCH is 5"),
        ("OPTIM.BIAS_CUSTOM_WEIGHT_DECAY 0",
         "override OPTIM.BIAS_CUSTOM_WEIGHT_DECAY has no effect: OPTIM.BIAS_USE_CUSTOM_WEIGHT_DECAY is False"),
        ("BN.NUM_SAMPLES_PRECISE 64", "override BN.NUM_SAMPLES_PRECISE has no effect: BN.USE_PRECISE_STATS is False"),
        ("LN.EPS 1e-6", "override LN.EPS has no effect: the model 'lenet5' does not use it"),
        ("MODEL.ACTIVATION_FUN relu", "override MODEL.ACTIVATION_FUN has no effect: the model 'lenet5' does not use it"),
        ("TRAIN.SAMPLES_PER_CLASS 4",
         "override TRAIN.SAMPLES_PER_CLASS has no effect: TRAIN.SAMPLER is instance; it belongs to class_aware"),
        ("TRAIN.EVAL_PERIOD 2 TRAIN.EVAL_SPLIT none",
         "override TRAIN.EVAL_PERIOD has no effect: TRAIN.EVAL_SPLIT is none; it belongs to val or test"),
        ("DATA.ROOT x DATA.SYNTHETIC True", "override DATA.ROOT has no effect: DATA.SYNTHETIC is True"),
        ("DATA.SEED 3", "override DATA.SEED has no effect: there is neither a long tail (DATA.LONG_TAIL.PROFILE) nor noise "
                        "(DATA.NOISE.RATE)"),
        ("NUM_GPUS 2 DEVICE cpu", "override NUM_GPUS has no effect: DEVICE is cpu; it belongs to auto or cuda"),
        ("PARALLEL.STATIC_GRAPH True PARALLEL.MODE fsdp",
         "override PARALLEL.STATIC_GRAPH has no effect: PARALLEL.MODE is fsdp; it belongs to ddp"),
        ("LAUNCH.PARTITION gpu", "override LAUNCH.PARTITION has no effect: LAUNCH.MODE is local; it belongs to slurm"),
        ("LAUNCH.MAX_RETRY 2",
         "override LAUNCH.MAX_RETRY has no effect: LAUNCH.MODE is local; it belongs to torchrun or slurm or submitit_local"),
        ("HEAD.NAME center HEAD.UPDATE gradient HEAD.CENTER_RATE 0.5",
         "override HEAD.CENTER_RATE has no effect: HEAD.UPDATE is gradient; it belongs to paper"),
        ("HEAD.NAME sphereface HEAD.LAMBDA_BASE 0 HEAD.LAMBDA_MIN 1",
         "override HEAD.LAMBDA_MIN has no effect: HEAD.LAMBDA_BASE is 0.0"),
        ("HEAD.NAME ldam HEAD.DRW_EPOCH 200", "override HEAD.DRW_EPOCH has no effect: OPTIM.MAX_EPOCH is 200"),
        ("HEAD.SIMILARITY.NAME cosine HEAD.SIMILARITY.LEARNING softplus HEAD.SIMILARITY.SCALE 9",
         "override HEAD.SIMILARITY.SCALE has no effect: HEAD.SIMILARITY.LEARNING is softplus; it belongs to fixed or learned"),
        ("HEAD.AUXILIARIES [{NAME:\\ center,UPDATE:\\ gradient,CENTER_RATE:\\ 0.1}]",
         "override HEAD.AUXILIARIES[0].CENTER_RATE has no effect: HEAD.AUXILIARIES[0].UPDATE is gradient; it belongs to paper"),
        ("MODEL.TYPE regnet REGNET.SE_R 0.25", "override REGNET.SE_R has no effect: REGNET.SE_ON is False"),
    ],
)  # fmt: skip
def test_an_option_without_effect(write: Write, words: str, line: str) -> None:
    given = [word.replace("\0", " ") for word in words.replace("\\ ", "\0").split()]
    assert said(write(BASE), *given) == [line]


@pytest.mark.parametrize(
    "words",
    [
        "OPTIM.MOMENTUM 0.8", "OPTIM.OPTIMIZER adam OPTIM.BETA1 0.8", "OPTIM.NESTEROV False OPTIM.MOMENTUM 0",
        "OPTIM.WARMUP_EPOCHS 2 OPTIM.WARMUP_FACTOR 0.2", "OPTIM.EMA_UPDATE_PERIOD 4 OPTIM.EMA_ALPHA 0.1",
        "OPTIM.LR_POLICY steps OPTIM.STEPS [0,30] OPTIM.LR_MULT 0.2", "OPTIM.MAX_EPOCH 0 OPTIM.WARMUP_EPOCHS 5",
        "OPTIM.WARMUP_EPOCHS 3 OPTIM.MAX_EPOCH 3", "MODEL.TYPE vit LN.EPS 1e-6", "MODEL.TYPE resnet BN.EPS 1e-3",
        "DATA.SEED 3 DATA.NOISE.KIND symmetric DATA.NOISE.RATE 0.2", "NUM_PROCS 2", "NUM_GPUS 2", "DEVICE cpu NUM_PROCS 2",
        "HEAD.NAME center HEAD.CENTER_RATE 0.4", "LAUNCH.MODE torchrun LAUNCH.MAX_RETRY 1",
    ],
)  # fmt: skip
def test_an_option_with_an_effect(write: Write, words: str) -> None:
    assert said(write(BASE), *words.split()) == []


def test_the_place_is_the_files_line_even_for_the_default_value(write: Write) -> None:
    text = BASE + "OPTIM:\n  OPTIMIZER: adam\n  MOMENTUM: 0.9\n"
    assert said(write(text)) == ["a.yaml:4: OPTIM.MOMENTUM has no effect: OPTIM.OPTIMIZER is adam; it belongs to sgd"]
    assert said(write(BASE + "OPTIM: {OPTIMIZER: adam}\n")) == []


@pytest.mark.parametrize("words", ["", "OPTIM.OPTIMIZER adam", "MODEL.TYPE regnet", "HEAD.NAME sphereface HEAD.LAMBDA_BASE 0",
                                   "OPTIM.LR_POLICY steps OPTIM.STEPS [5]", "DEVICE cpu TRAIN.EVAL_SPLIT none",
                                   "STAGE2.METHOD retrain STAGE2.OPTIM.OPTIMIZER adam"])  # fmt: skip
def test_what_a_run_wrote_down_is_not_complained_of(write: Write, words: str) -> None:
    """It has every option in it; those that are not at their defaults were someone's choice."""
    cfg = config.load(write(BASE), words.split(), notify=lambda line: None)
    again = write(config.dump(cfg), "config.yaml")
    assert said(again) == []
    assert said(again, "OPTIM.OPTIMIZER", "adamw", "OPTIM.MOMENTUM", 0.9)[0].startswith("override OPTIM.MOMENTUM has no eff")


def test_a_choice_without_effect_that_a_run_wrote_down(write: Write) -> None:
    cfg = config.load(write(BASE), ["OPTIM.OPTIMIZER", "adam", "OPTIM.MOMENTUM", "0.5"], notify=lambda line: None)
    (line,) = said(write(config.dump(cfg), "config.yaml"))
    assert line.startswith("config.yaml:") and "OPTIM.MOMENTUM has no effect: OPTIM.OPTIMIZER is adam" in line


def test_two_stages(write: Write) -> None:
    base = [write(BASE), "STAGE2.METHOD", "retrain", "OPTIM.OPTIMIZER", "adam"]
    assert said(*base, "STAGE2.OPTIM.MOMENTUM", 0.8) == [
        "override STAGE2.OPTIM.MOMENTUM has no effect: OPTIM.OPTIMIZER is adam; it belongs to sgd"
    ]
    assert said(*base, "STAGE2.OPTIM.OPTIMIZER", "sgd", "OPTIM.MOMENTUM", 0.8) == [], "the second stage has it from the first"
    assert len(said(*base, "STAGE2.OPTIM.OPTIMIZER", "adamw", "OPTIM.MOMENTUM", 0.8)) == 1


def test_the_tables_name_options_that_there_are() -> None:
    assert set(no_effect.TABLE) <= set(CORE)
    options = {(name, key) for registry in (MODELS, DATASETS, HEADS, SIMILARITIES, MARGINS, CRITERIA, AUXILIARIES)
               for name in registry._built_in for key in components.component_options(registry, name)}  # fmt: skip
    for (names, pattern), rows in no_effect.OF_COMPONENTS.items():
        for name in names.split():
            assert any(own == name and key.startswith(pattern.partition("[")[0].rstrip("*")) for own, key in options)
            assert all((name, sibling) in options for _, sibling, *_ in rows)
