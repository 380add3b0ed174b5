"""Every number that can be configured has a range, which the configuration and the constructors keep."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, get_args

import pytest

from pycls.config import components, schema
from pycls.config.options import CORE, Option
from pycls.config.yaml_lines import ConfigValue
from pycls.errors import InputError
from pycls.ranges import LARGEST_INT, Range, complaint, in_range, range_of
from pycls.registry import AUXILIARIES, CRITERIA, DATASETS, HEADS, MARGINS, MODELS, SIMILARITIES

REGISTRIES = (MODELS, DATASETS, HEADS, SIMILARITIES, MARGINS, CRITERIA, AUXILIARIES)


def kinds(option: Option) -> set[Any]:
    """The types in it, inside lists too."""
    found, rest = set(), list(schema.kinds_of(option))
    while rest:
        kind = rest.pop()
        inside = get_args(kind)
        rest += [item for item in inside if item is not Ellipsis]
        found |= set() if inside else {kind}
    return found


@cache
def numbers() -> dict[str, Option]:
    """Every option that is a number, or a list of numbers, and not one of a few choices."""
    options = dict(CORE)
    for registry in REGISTRIES:
        for name in registry._built_in:
            found = components.component_options(registry, name)
            options |= {f"{registry.kind} {name}.{key}": option for key, option in found.items()}
    return {key: option for key, option in options.items() if not option.choices and kinds(option) & {int, float}}


def located(value: Any) -> ConfigValue:
    return ConfigValue([located(item) for item in value] if isinstance(value, list | tuple) else value, "f:1")


def around(option: Option) -> Iterator[tuple[float, bool]]:
    """Numbers at and just beyond the ends of its range, and whether they are in it."""
    allowed, whole = option.range, float not in kinds(option)
    assert allowed is not None

    def step(end: float, towards: float) -> float:
        return int(end + math.copysign(1, towards)) if whole else math.nextafter(end, towards)

    low: float = int(allowed.low) if whole else float(allowed.low)
    yield low, not allowed.open_left
    yield step(low, math.inf), True
    if step(low, -math.inf) not in allowed.also:
        yield step(low, -math.inf), False
    if allowed.high < math.inf:
        high: float = int(allowed.high) if whole else float(allowed.high)
        yield high, not allowed.open_right
        yield step(high, math.inf), False
    elif whole:
        yield LARGEST_INT, True
        yield LARGEST_INT + 1, False
    for value in allowed.also:
        yield value if whole else float(value), True


def in_place(option: Option, number: float) -> Any:
    """The number, in as many brackets as the option's lists have."""
    text = str(next(kind for kind in schema.kinds_of(option) if kind is not type(None)))
    depth = text.count("list[") + text.count("tuple[") + (text in ("<class 'list'>", "<class 'tuple'>"))
    value: Any = number
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("key", [pytest.param(key, id=key) for key in numbers()])
def test_a_number_has_a_range_that_is_kept(key: str) -> None:
    option = numbers()[key]
    assert option.range is not None, f"{key}: declare a Range beside its default (pycls/ranges.py)"
    assert not complaint(option.default, option.range), "the default"
    assert schema.convert(located(option.default), option, key) == option.default
    for number, inside in around(option):
        given = located(in_place(option, number))
        if inside:
            schema.convert(given, option, key)
            continue
        with pytest.raises(InputError) as caught:
            schema.convert(given, option, key)
        assert str(caught.value).startswith(f"f:1: {key}: expected ") and "\n" not in str(caught.value)
    for number in (math.inf, -math.inf, math.nan, 10**400):
        with pytest.raises(InputError, match=r"^f:1: .*: expected "):
            schema.convert(located(in_place(option, number)), option, key)


def test_there_are_numbers_to_look_at() -> None:
    assert len(numbers()) > 150 and "OPTIM.STEPS" in numbers() and "head cosface.MARGIN" in numbers()


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("OPTIM.BASE_LR", 0), ("OPTIM.MOMENTUM", 1), ("OPTIM.DAMPENING", 2), ("OPTIM.BETA1", 1), ("OPTIM.BETA2", 0),
        ("OPTIM.WEIGHT_DECAY", -1e-9), ("HEAD.WEIGHT_DECAY", -0.5), ("OPTIM.EMA_ALPHA", 0), ("OPTIM.EMA_ALPHA", 1.1),
        ("OPTIM.WARMUP_FACTOR", 1.5), ("BN.EPS", 0), ("LN.EPS", 0), ("TRAIN.LABEL_SMOOTHING", 1), ("TRAIN.MIXUP_ALPHA", -1),
        ("TRAIN.REPEAT_THRESHOLD", 2), ("TRAIN.BATCH_SIZE", 0), ("TEST.BATCH_SIZE", 0), ("TEST.TOP_K", 0), ("LOG_PERIOD", 0),
        ("DATA_LOADER.NUM_WORKERS", -1), ("NUM_GPUS", 0), ("TRAIN.IM_SIZE", -1), ("OPTIM.MAX_EPOCH", -1),
        ("TRAIN.ERASE_PROB", 1.01), ("HEAD.SAMPLE_RATE", 0), ("STAGE2.TAU", -0.5), ("TRAIN.CROP_PADDING", -2),
        ("RNG_SEED", 2**63), ("RUNTIME.TIMEOUT", 1e300), ("NUM_THREADS", 2**31),
    ],
)  # fmt: skip
def test_a_number_that_cannot_work(key: str, bad: float) -> None:
    with pytest.raises(InputError, match=rf"^f:1: {key}: expected "):
        schema.convert(located(bad), CORE[key], key)


@pytest.mark.parametrize(
    ("allowed", "text"),
    [
        (Range(0), "at least 0"), (Range(0, open_left=True), "above 0"), (Range(0, 1), "between 0 and 1"),
        (Range(0, 1, open_right=True), "at least 0 and below 1"), (Range(0, 1, open_left=True), "above 0 and at most 1"),
        (Range(0, also=(-1,)), "-1 or at least 0"), (Range(-0.5, open_left=True), "above -0.5"),
    ],
)  # fmt: skip
def test_a_range_in_words(allowed: Range, text: str) -> None:
    assert str(allowed) == text


def test_the_range_of_an_annotation() -> None:
    share = Range(0, 1)
    for hint in (Annotated[float, share], Annotated[float, share] | None, list[Annotated[float, share]],
                 Annotated[tuple[float, ...], "words", share]):  # fmt: skip
        assert range_of(hint) == share
    assert range_of(float) is None and range_of(list[int] | None) is None and range_of(Annotated[int, "words"]) is None


def test_a_decorated_function_checks_what_it_is_given() -> None:
    @in_range
    def area(
        width: Annotated[float, Range(0)], sides: Annotated[list[int] | None, Range(1, 9)] = None, other: int = 0
    ) -> float:
        return width + sum(sides or []) + other

    assert area(1.0) == 1 and area(0, [2], other=-5) == -3 and area.__name__ == "area"
    for arguments, message in (((-1.0,), "width: expected at least 0, found -1.0"), ((math.nan,), "width: expected a finite "),
                               ((1.0, [3, 10]), "sides: expected between 1 and 9, found 10")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{message}"):
            area(*arguments)
    with pytest.raises(TypeError):
        area()  # type: ignore[call-arg]


def test_a_constructor_refuses_what_the_configuration_refuses() -> None:
    """Every head and part of one: the first of its numbers, just outside its range, by the same words."""
    given = {"in_features": 2, "num_classes": 60, "class_counts": [1] * 60}
    for registry in (HEADS, SIMILARITIES, MARGINS, CRITERIA, AUXILIARIES):
        for name in registry._built_in:
            component = registry.get(name)
            supplied = {key: value for key, value in given.items() if schema.accepts(component, key)}
            for key, option in components.component_options(registry, name).items():
                if f"{registry.kind} {name}.{key}" not in numbers():
                    continue
                wrong = in_place(option, next(number for number, inside in around(option) if not inside))
                with pytest.raises(ValueError, match=f"^{key.lower()}: expected {option.range}, found "):
                    component(**supplied, **{key.lower(): wrong})
