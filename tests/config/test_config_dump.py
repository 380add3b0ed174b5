"""The dumped YAML is the run's whole recipe, and two recipes can be compared."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from pycls import config
from pycls.config.checks import DEPENDENT
from pycls.config.options import CORE, IRRELEVANT_TO_RESULT, Option

Write = Callable[..., str]
WORDS = [
    "a",
    "on",
    "off",
    "None",
    "null",
    "1e-3",
    "0.1",
    "12",
    "2024-01-02",
    "a: b #c",
    "it's",
    '"q"',
    "ü",
    " x ",
    "",
    "~",
    "- y",
    "line\nbreak",
    "=",
    "{}",
    "1:30",
    "0x1f",
    "true",
]
SKIPPED = {"IMPORTS", "MODEL.TYPE", "MODEL.DEPTH", "MODEL.ACTIVATION_CHECKPOINTING", "TRAIN.DATASET", "TEST.DATASET",
           "TEST.OPEN_SET", "TRAIN.SPLIT", "TRAIN.EVAL_SPLIT", "TRAIN.IM_SIZES", "DATA.NOISE.RATE", "LAUNCH.MODE",
           "STAGE2.METHOD", "STAGE2.FREEZE_BN", "DATA_LOADER.DECODER", *DEPENDENT}  # fmt: skip


def random_value(rng: random.Random, option: Option) -> Any:
    if option.choices:
        return rng.choice(option.choices)
    if isinstance(option.default, bool):
        return rng.random() < 0.5
    if isinstance(option.default, int):
        return rng.choice([n for n in (1, 2, 7, 10**6, 10**18) if option.range and n in option.range])
    if isinstance(option.default, float):
        assert option.range is not None
        low = option.range.low
        high = option.range.high if option.range.high < math.inf else low + rng.choice([1.0, 1e-9, 1e12])
        number = low + (high - low) * rng.random() if rng.random() < 0.8 else low
        return number if number in option.range else option.default
    if isinstance(option.default, list):
        return rng.sample(WORDS, rng.randrange(3))
    return rng.choice(WORDS)


def random_tree(rng: random.Random) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "MODEL": {"TYPE": "fakenet", "DEPTH": rng.choice([0, 2, 4])},
        "TRAIN": {"DATASET": "fakeset"},
    }
    for key, option in CORE.items():
        if key in SKIPPED or key.startswith("HEAD.") or rng.random() < 0.3:
            continue
        *above, own = key.split(".")
        node = tree
        for section in above:
            node = node.setdefault(section, {})
        node[own] = random_value(rng, option) if key != "OPTIM.STEPS" else []
    for key in ("BATCH_SIZE", "ACCUM_STEPS"):
        tree["TRAIN"].pop(key, None)
    tree |= {"NUM_PROCS": 2, "NUM_GPUS": 4}
    if rng.random() < 0.3:
        tree.setdefault("OPTIM", {}).update(LR_POLICY="steps", STEPS=[1, 5, 1000])
    tree["FAKENET"] = {
        "WIDTH": rng.randrange(-5, 5),
        "RATIO": rng.uniform(-1e9, 1e9),
        "STEM": rng.choice(["plain", "deep", "on"]),
        "WIDTHS": [rng.randrange(9) for _ in range(rng.randrange(4))],
        "SIZE": [1, 2],
        "LIMIT": rng.choice([None, 3.5, 1e-30]),
    }
    tree["HEAD"] = rng.choice(
        [
            {"NAME": "fakehead", "MARGIN": rng.random()},
            {"NAME": "barehead", "CRITERION": {"NAME": "fakecriterion", "FOCUS": rng.random()}},
            {"SIMILARITY": {"NAME": "fakesim", "SCALE": rng.uniform(1e-12, 1e18)}, "MARGIN": {"NAME": "fakemargin"}},
            {
                "NAME": "",
                "SIMILARITY": {"NAME": "fakesim"},
                "AUXILIARIES": ["fakeaux", {"NAME": "fakeaux", "VARIANT": "l1"}],
            },
        ]
    )
    tree["STAGE2"] = rng.choice(
        [
            {},
            {"METHOD": "ncm"},
            {"METHOD": "lws", "FREEZE_BN": False, "OPTIM": {"MAX_EPOCH": rng.randrange(9)}},
            {"METHOD": "retrain", "TRAIN": {"SAMPLER": "class_aware", "SAMPLES_PER_CLASS": 2}},
            {"METHOD": "retrain", "HEAD": {"NAME": "fakehead", "MARGIN": rng.random()}, "OPTIM": {"BASE_LR": rng.random()}},
        ]
    )
    return tree


@pytest.mark.parametrize("seed", range(40))
def test_dump_loads_to_the_same_tree(write: Write, seed: int) -> None:
    rng = random.Random(seed)
    cfg = config.load(write(yaml.safe_dump(random_tree(rng), allow_unicode=bool(seed % 2))))
    text = config.dump(cfg)
    again = config.load(write(text, "out/config.yaml"))
    assert again == cfg
    assert config.dump(again) == text
    assert config.difference(cfg, again) == []


def test_the_given_values_arrive(write: Write) -> None:
    """Against a loader that would ignore what it reads."""
    for seed in range(10):
        tree = random_tree(random.Random(seed))
        cfg = config.load(write(yaml.safe_dump(tree)))
        for section in ("OPTIM", "BN", "FAKENET", "TEST"):
            for key, value in tree.get(section, {}).items():
                found = cfg[section][key]
                assert (list(found) if isinstance(found, tuple) else found) == value, (section, key)


def test_dump_is_sorted_and_complete(write: Write, base: str) -> None:
    plain = yaml.safe_load(config.dump(config.load(write(base))))
    assert list(plain) == sorted(plain)
    assert all(list(section) == sorted(section) for section in plain.values() if isinstance(section, dict))
    assert plain["FAKENET"]["SIZE"] == [3, 3] and plain["OPTIM"]["BASE_LR"] == 0.1


def test_difference_is_what_changes_the_result(write: Write, base: str) -> None:
    path = write(base)
    old = config.load(path)
    assert config.difference(old, config.load(path)) == []
    new = config.load(
        path, ["OPTIM.BASE_LR", "0.2", "OPTIM.LR_POLICY", "steps", "OPTIM.STEPS", "[3]", "HEAD.MARGIN", "0.5"]
    )
    assert config.difference(old, new) == [
        "HEAD.MARGIN: 0.35 -> 0.5",
        "OPTIM.BASE_LR: 0.1 -> 0.2",
        "OPTIM.LR_POLICY: 'cos' -> 'steps'",
        "OPTIM.STEPS: [] -> [3]",
    ]
    assert config.difference(old, config.load(path, ["HEAD.NAME", "barehead"])) == [
        "HEAD.MARGIN: 0.35 -> (absent)",
        "HEAD.NAME: 'fakehead' -> 'barehead'",
        "HEAD.SCALE: 64.0 -> (absent)",
    ]


def test_difference_leaves_out_what_does_not(write: Write, base: str) -> None:
    path = write(base)
    irrelevant = [
        "OUT_DIR",
        "elsewhere",
        "LOG_PERIOD",
        "3",
        "NUM_PROCS",
        "2",
        "NUM_GPUS",
        "2",
        "NUM_THREADS",
        "1",
        "DATA.ROOT",
        "/d",
        "DATA.DOWNLOAD",
        "False",
        "DATA_LOADER.NUM_WORKERS",
        "0",
        "TENSORBOARD",
        "False",
        "TRAIN.CHECKPOINT_PERIOD",
        "9",
        "TRAIN.CHECKPOINT_KEEP",
        "9",
        "TRAIN.CHECKPOINT_STEPS",
        "9",
        "TRAIN.AUTO_RESUME",
        "False",
        "LOG_SAMPLES",
        "True",
        "PREC_TIME.NUM_ITER",
        "9",
        "TEST.BATCH_SIZE",
        "9",
        "TEST.DATASET",
        "otherset",
        "OTHERSET.SHADE",
        "5",
    ]
    assert config.difference(config.load(path), config.load(path, irrelevant)) == []


def test_difference_takes_what_yaml_reads(write: Write, base: str) -> None:
    cfg = config.load(write(base))
    assert config.difference(yaml.safe_load(config.dump(cfg)), cfg) == []
    older = yaml.safe_load(config.dump(cfg))
    del older["OPTIM"]["CLIP_NORM"]
    older["TRAIN"]["MIXED_PRECISION"] = 0
    assert config.difference(older, cfg) == ["OPTIM.CLIP_NORM: (absent) -> 0.0", "TRAIN.MIXED_PRECISION: 0 -> False"]


def test_every_irrelevant_pattern_means_something() -> None:
    import fnmatch

    for pattern in IRRELEVANT_TO_RESULT:
        assert any(fnmatch.fnmatchcase(key, pattern) for key in CORE), pattern
