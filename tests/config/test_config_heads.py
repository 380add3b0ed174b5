"""The head: by name, by its parts, with another criterion and with auxiliaries."""

from collections.abc import Callable

import pytest

from pycls import config
from pycls.errors import InputError
from pycls.registry import AUXILIARIES, HEADS, MARGINS, SIMILARITIES

Write = Callable[..., str]
REST = "MODEL: {TYPE: fakenet}\nTRAIN: {DATASET: fakeset}\n"
CORE = {"LR_MULT": 1.0, "WEIGHT_DECAY": -1.0, "MARGIN_WARMUP": 0, "CHUNK": 0, "PARALLEL": "none", "SAMPLE_RATE": 1.0,
        "AUXILIARIES": []}  # fmt: skip


def test_a_named_head_with_a_scalar_margin(write: Write) -> None:
    cfg = config.load(write(REST + "HEAD: {NAME: fakehead, MARGIN: 1e-1, SCALE: 30}\n"))
    assert cfg.HEAD == {"NAME": "fakehead", "SCALE": 30.0, "MARGIN": 0.1, "CRITERION": {"NAME": ""}, **CORE}


def test_a_head_by_its_parts(write: Write) -> None:
    parts = ("SIMILARITY: {NAME: fakesim, SCALE: 3}", "MARGIN: {NAME: fakemargin}", "CRITERION: {NAME: fakecriterion}")
    text = f"HEAD: {{{', '.join(parts)}}}\n"
    cfg = config.load(write(REST + text))
    assert cfg.HEAD == {
        "NAME": "",
        "SIMILARITY": {"NAME": "fakesim", "SCALE": 3.0},
        "MARGIN": {"NAME": "fakemargin", "MARGIN": 0.2},
        "CRITERION": {"NAME": "fakecriterion", "FOCUS": 2.0},
        **CORE,
    }
    assert config.part_arguments(
        SIMILARITIES, cfg.HEAD.SIMILARITY, in_features=2, num_classes=3, class_counts=None
    ) == {
        "in_features": 2,
        "num_classes": 3,
        "scale": 3.0,
    }
    assert config.part_arguments(MARGINS, cfg.HEAD.MARGIN, in_features=2) == {"margin": 0.2}


def test_parts_from_overrides_alone(write: Write) -> None:
    cfg = config.load(
        write(REST), ["HEAD.SIMILARITY.NAME", "fakesim", "HEAD.MARGIN", "{NAME: fakemargin, MARGIN: 0.7}"]
    )
    assert cfg.HEAD.NAME == "" and cfg.HEAD.MARGIN == {"NAME": "fakemargin", "MARGIN": 0.7}
    assert cfg.HEAD.CRITERION == {"NAME": ""}


def test_softmax_is_the_default() -> None:
    assert "softmax" in HEADS
    cfg = config.load(None, ["MODEL.TYPE", "fakenet", "TRAIN.DATASET", "fakeset"])
    assert cfg.HEAD.NAME == "softmax"


def test_an_override_takes_the_place_of_the_other_form(write: Write) -> None:
    parts = write(REST + "HEAD: {SIMILARITY: {NAME: fakesim}, MARGIN: {NAME: fakemargin}}\n")
    cfg = config.load(parts, ["HEAD.NAME", "fakehead", "HEAD.SIMILARITY.NAME", "", "HEAD.MARGIN", "0.5"])
    assert cfg.HEAD == {"NAME": "fakehead", "SCALE": 64.0, "MARGIN": 0.5, "CRITERION": {"NAME": ""}, **CORE}
    named = write(REST + "HEAD: {NAME: fakehead, MARGIN: 0.5}\n")
    cfg = config.load(named, ["HEAD.NAME", "", "HEAD.SIMILARITY.NAME", "fakesim", "HEAD.MARGIN.NAME", "fakemargin"])
    assert cfg.HEAD.MARGIN == {"NAME": "fakemargin", "MARGIN": 0.2}


def test_a_named_head_with_another_criterion_and_auxiliaries(write: Write) -> None:
    text = """\
HEAD:
  NAME: barehead
  CRITERION: {NAME: fakecriterion, FOCUS: 3}
  AUXILIARIES:
  - {NAME: fakeaux, WEIGHT: 3e-3}
  - fakeaux
"""
    cfg = config.load(write(REST + text))
    assert cfg.HEAD.CRITERION == {"NAME": "fakecriterion", "FOCUS": 3.0}
    assert cfg.HEAD.AUXILIARIES == [
        {"NAME": "fakeaux", "WEIGHT": 0.003, "VARIANT": "l2"},
        {"NAME": "fakeaux", "WEIGHT": 0.01, "VARIANT": "l2"},
    ]
    first = config.part_arguments(AUXILIARIES, cfg.HEAD.AUXILIARIES[0], in_features=7, num_classes=3)
    assert first == {"in_features": 7, "weight": 0.003, "variant": "l2"}


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("NAME: arkhead", "a.yaml:3: HEAD.NAME: there is no head named 'arkhead'; did you mean 'fakehead'"),
        ("NAME: 3", "a.yaml:3: HEAD.NAME: expected a string (str), found 3 (int)"),
        ("NAME: ''", "a.yaml:3: HEAD.NAME is empty: name a head ("),
        (
            "NAME: fakehead, SCAL: 3",
            "a.yaml:3: unknown option HEAD.SCAL of the head 'fakehead'; did you mean HEAD.SCALE?",
        ),
        ("NAME: fakehead, GAMMA: 3", "a.yaml:3: unknown option HEAD.GAMMA of the head 'fakehead'; it has HEAD.NAME, "),
        ("NAME: fakehead, MARGIN: big", "a.yaml:3: HEAD.MARGIN: expected a number (float), found 'big' (str)"),
        (
            "NAME: fakehead, SIMILARITY: {NAME: fakesim}",
            "a.yaml:3: HEAD.SIMILARITY.NAME: a.yaml:3: HEAD.NAME is 'fakehead' "
            "already; either name a head or spell it out by its parts (HEAD.NAME '')",
        ),
        (
            "NAME: fakehead, MARGIN: {NAME: fakemargin}",
            "a.yaml:3: HEAD.MARGIN.NAME: a.yaml:3: HEAD.NAME is 'fakehead' already",
        ),
        ("NAME: fakehead, MARGIN: {MARGIN: 3}", "a.yaml:3: HEAD.MARGIN.MARGIN has no effect: HEAD.NAME is fakehead"),
        (
            "NAME: fakehead, SIMILARITY: {SCALE: 3}",
            "a.yaml:3: HEAD.SIMILARITY.SCALE has no effect: HEAD.NAME is fakehead",
        ),
        ("NAME: fakehead, SIMILARITY: fakesim", "a.yaml:3: unknown option HEAD.SIMILARITY of the head 'fakehead'"),
        (
            "NAME: fakehead, CRITERION: {FOCUS: 3}",
            "a.yaml:3: HEAD.CRITERION.FOCUS has no effect: HEAD.CRITERION.NAME is empty",
        ),
        (
            "MARGIN: {NAME: fakemargin}",
            "a.yaml:3: HEAD.MARGIN.NAME: a margin by name needs HEAD.SIMILARITY.NAME beside it",
        ),
        (
            "SIMILARITY: {NAME: fakesin}",
            "a.yaml:3: HEAD.SIMILARITY.NAME: there is no similarity named 'fakesin'; did you mean",
        ),
        ("SIMILARITY: {NAME: fakesim}, MARGIN: 0.3", "a.yaml:3: HEAD.MARGIN: expected the part, such as {NAME: "),
        (
            "SIMILARITY: {NAME: fakesim}, CRITERION: fakecriterion",
            "a.yaml:3: HEAD.CRITERION: expected the part, such as {NAME: ",
        ),
        (
            "SIMILARITY: {NAME: fakesim, SCAL: 3}",
            "a.yaml:3: unknown option HEAD.SIMILARITY.SCAL of the similarity 'fakesim'; did "
            "you mean HEAD.SIMILARITY.SCALE?",
        ),
        (
            "SIMILARITY: {NAME: fakesim}, SCALE: 3",
            "a.yaml:3: unknown option HEAD.SCALE; did you mean HEAD.SIMILARITY.SCALE?",
        ),
        (
            "SIMILARITY: {NAME: fakesim}, MARGIN: {MARGIN: 3}",
            "a.yaml:3: HEAD.MARGIN.MARGIN has no effect: HEAD.MARGIN.NAME is empty",
        ),
        ("LR_MULT: -1", "a.yaml:3: HEAD.LR_MULT: expected at least 0, found -1.0"),
        ("AUXILIARIES: fakeaux", "a.yaml:3: HEAD.AUXILIARIES: expected a list"),
    ],
)
def test_mistakes_in_a_head(write: Write, head: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        config.load(write(f"{REST}HEAD: {{{head}}}\n"))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            "NAME: fakeauks",
            "a.yaml:6: HEAD.AUXILIARIES[1].NAME: there is no auxiliary loss named 'fakeauks'; did you mean",
        ),
        ("WEIGHT: 3", "a.yaml:6: HEAD.AUXILIARIES[1]: expected a mapping with a NAME, such as {NAME: center}, found"),
        (
            "NAME: fakeaux\n    WEIHT: 3",
            "a.yaml:7: unknown option HEAD.AUXILIARIES[1].WEIHT of the auxiliary loss 'fakeaux', which "
            "has WEIGHT, VARIANT; did you mean WEIGHT?",
        ),
        (
            "NAME: fakeaux\n    WEIGHT: big",
            "a.yaml:7: HEAD.AUXILIARIES[1].WEIGHT: expected a number (float), found 'big' (str)",
        ),
        (
            "NAME: fakeaux\n    VARIANT: l3",
            "a.yaml:7: HEAD.AUXILIARIES[1].VARIANT: expected one of l1, l2, found 'l3' (str)",
        ),
        ("NAME: ''", "a.yaml:6: HEAD.AUXILIARIES[1].NAME: there is no auxiliary loss named ''"),
        ("3", "a.yaml:6: HEAD.AUXILIARIES[1]: expected a mapping with a NAME"),
    ],
)
def test_mistakes_in_an_auxiliary(write: Write, entry: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        config.load(write(f"{REST}HEAD:\n  AUXILIARIES:\n  - NAME: fakeaux\n  - {entry}\n"))
    assert str(caught.value).startswith(expected)


def test_a_head_may_not_take_the_name_of_a_core_option(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    def grabby(in_features: int, num_classes: int, weight_decay: float = 0.0) -> None: ...

    def shadow(in_features: int, num_classes: int, criterion: str = "x") -> None: ...

    monkeypatch.setitem(HEADS._entries, "grabby", grabby)
    monkeypatch.setitem(HEADS._entries, "shadow", shadow)
    for name, key in (("grabby", "HEAD.WEIGHT_DECAY"), ("shadow", "HEAD.CRITERION")):
        with pytest.raises(InputError, match=f"the head '{name}' cannot have an option named {key}: it is taken"):
            config.load(write(f"{REST}HEAD: {{NAME: {name}}}\n"))
