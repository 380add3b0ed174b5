"""Components that exist for these tests only: of every kind of signature, and without torch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from pycls.registry import AUXILIARIES, CRITERIA, DATASETS, HEADS, MARGINS, MODELS, SIMILARITIES


class FakeNet:
    """A backbone in name only.

    Args:
        in_channels: supplied.
        depth: layers.
        bn_eps: supplied.
        width: channels of the first
            layer, which the others
            multiply.
        ratio: a share.
        stem: what comes first.
        widths: channels of each stage.
        size: height and width.
        limit: the largest, or none.
        strict: a switch.
    """

    def __init__(
        self,
        in_channels: int,
        depth: Literal[2, 4] = 2,
        bn_eps: float = 1e-5,
        width: int = 8,
        ratio: float = 0.5,
        stem: Literal["plain", "deep", "on"] = "plain",
        widths: list[int] = [8, 16],  # noqa: B006
        size: tuple[int, int] = (3, 3),
        limit: float | None = None,
        strict: bool = False,
    ) -> None: ...


class PlainNet:
    """A backbone without options."""

    def __init__(self, in_channels: int, image_size: int) -> None: ...


class SectionNet:
    """A backbone whose section has another name.

    Args:
        stages: how many; it must be given.
    """

    section = "SN"

    def __init__(self, stages: int) -> None: ...


def fake_set(root: str, split: str, download: bool = True, fold: int = 0) -> None:
    """A data set.

    Args:
        fold: which part is held out.
    """


def other_set(root: str, split: str, shade: float = 1.0) -> None:
    """Another data set."""


def fake_head(in_features: int, num_classes: int, scale: float = 64.0, margin: float = 0.35) -> None:
    """A head with a scalar margin.

    Args:
        scale: s.
        margin: m.
    """


def bare_head(in_features: int, num_classes: int) -> None:
    """A head without options."""


def fake_similarity(in_features: int, num_classes: int, scale: float = 10.0) -> None:
    """A similarity."""


def fake_margin(margin: float = 0.2) -> None:
    """A margin."""


def fake_criterion(class_counts: list[int], focus: float = 2.0) -> None:
    """A criterion."""


def fake_auxiliary(in_features: int, weight: float = 0.01, variant: Literal["l1", "l2"] = "l2") -> None:
    """An auxiliary loss."""


FAKES: list[tuple[Any, str, Any]] = [
    (MODELS, "fakenet", FakeNet),
    (MODELS, "plainnet", PlainNet),
    (MODELS, "sectionnet", SectionNet),
    (DATASETS, "fakeset", fake_set),
    (DATASETS, "otherset", other_set),
    (HEADS, "fakehead", fake_head),
    (HEADS, "barehead", bare_head),
    (SIMILARITIES, "fakesim", fake_similarity),
    (MARGINS, "fakemargin", fake_margin),
    (CRITERIA, "fakecriterion", fake_criterion),
    (AUXILIARIES, "fakeaux", fake_auxiliary),
]


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fakes are registered while a test of this folder runs, and gone afterwards."""
    for registry, name, component in FAKES:
        monkeypatch.setitem(registry._entries, name, component)
    yield


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a file into the current directory, a fresh one, and return its relative path."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "a.yaml") -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
        return name

    return write_file


BASE = "MODEL: {TYPE: fakenet}\nTRAIN: {DATASET: fakeset}\nHEAD: {NAME: fakehead}\n"
"""Three lines which load."""


@pytest.fixture
def base() -> str:
    return BASE
