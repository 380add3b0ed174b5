"""Signatures and docstrings -> options; values -> the types of options."""

from typing import Literal, Optional

import pytest

from pycls.config import components, schema, source_scan
from pycls.config.options import Option
from pycls.config.yaml_lines import ConfigValue
from pycls.errors import InputError
from pycls.ranges import Range
from pycls.registry import AUXILIARIES, CRITERIA, DATASETS, HEADS, MARGINS, MODELS, SIMILARITIES, Registry


class Documented:
    """Summary of
    two lines.

    More.

    Args:
        given: not an option.
        first: on one line.
        second (int): on
            two lines; with a colon: and more.

            And a paragraph.
        third, fourth: shared.
        *rest: ignored.

    Raises:
        ValueError: first: not this.
    """

    def __init__(
        self,
        given: int,
        first: float,
        second: int = 3,
        third: "str | None" = None,
        *rest: int,
        fourth: Literal["a", "b"] = "a",
        undocumented: bool = False,
        **more: int,
    ) -> None: ...


class Inherits(Documented):
    pass


class InitDoc:
    def __init__(self, x: int = 1) -> None:
        """Make it.

        Args:
            x: from the constructor's docstring.
        """


def test_options_of_a_class() -> None:
    options = schema.options_of(Documented, frozenset({"given"}))
    assert list(options) == ["FIRST", "SECOND", "THIRD", "FOURTH", "UNDOCUMENTED"]
    assert options["FIRST"] == Option(schema.REQUIRED, "on one line.", types=(float,))
    assert options["SECOND"].help == "on two lines; with a colon: and more. And a paragraph."
    assert options["THIRD"].types == (str, type(None)) and options["THIRD"].default is None
    assert options["THIRD"].help == options["FOURTH"].help == "shared."
    assert options["FOURTH"].choices == ("a", "b") and options["FOURTH"].types == (str,)
    assert options["UNDOCUMENTED"] == Option(False, "", types=(bool,))
    assert schema.options_of(Inherits, frozenset({"given"})) == options


def test_options_of_a_function() -> None:
    def build(size: int, *, names: list[str] | None = None, old: Optional[int] = None, bare=2.5) -> None:  # noqa: UP045
        """Build.

        Args:
            size: how large
                it is.
            names: whose.
        """

    options = schema.options_of(build)
    assert {key: option.types for key, option in options.items()} == {
        "SIZE": (int,),
        "NAMES": (list[str], type(None)),
        "OLD": (int, type(None)),
        "BARE": (float,),
    }
    assert (options["SIZE"].help, options["NAMES"].help, options["BARE"].help) == ("how large it is.", "whose.", "")
    assert schema.options_of(InitDoc)["X"].help == "from the constructor's docstring."


def test_literals() -> None:
    def f(a: Literal[1, 2] = 1, b: Literal["x"] | None = None, c: float | Literal["auto"] = "auto") -> None: ...

    options = schema.options_of(f)
    assert options["A"].choices == (1, 2) and options["A"].types == (int,)
    assert options["B"].choices == ("x", None) and options["B"].types == (str, type(None))
    assert options["C"].choices == ()
    auto = options["C"]
    assert schema.convert(ConfigValue("auto", "f:1", "auto"), auto, "C") == "auto"
    assert schema.convert(ConfigValue(3, "f:1", "3"), auto, "C") == 3.0
    with pytest.raises(InputError, match=r"^f:1: C: expected a number \(float\) or 'auto', found 'manual' \(str\)$"):
        schema.convert(ConfigValue("manual", "f:1", "manual"), auto, "C")
    with pytest.raises(InputError, match=r"^f:1: A: expected one of 1, 2, found True"):
        schema.convert(ConfigValue(True, "f:1", "true"), options["A"], "A")


@pytest.mark.parametrize("annotation", [dict, dict[str, int], object, "type[int]", list, list[dict], complex])
def test_annotations_that_no_yaml_holds(annotation: object) -> None:
    def f(x): ...  # type: ignore[no-untyped-def]

    f.__annotations__["x"] = annotation
    with pytest.raises(InputError, match="f cannot be configured: its argument 'x' has no type that YAML can hold"):
        schema.options_of(f)


def test_no_annotation_and_no_default() -> None:
    def f(x): ...  # type: ignore[no-untyped-def]

    with pytest.raises(InputError, match="argument 'x'"):
        schema.options_of(f)


def yaml(value: object, text: str | None = None) -> ConfigValue:
    if isinstance(value, list):
        return ConfigValue([yaml(item) for item in value], "f:1")
    return ConfigValue(value, "f:1", str(value) if text is None else text)


@pytest.mark.parametrize(
    ("kinds", "given", "value"),
    [
        ((float,), yaml(3), 3.0),
        ((float,), yaml("1e-3"), 1e-3),
        ((float,), yaml("-.5E+2"), -50.0),
        ((int,), yaml(3), 3),
        ((bool,), yaml(True), True),
        ((str,), yaml("1e-3"), "1e-3"),
        ((float, str), yaml("1e-3"), 1e-3),
        ((str, float), yaml("word"), "word"),
        ((int, float), yaml(3), 3),
        ((int, float), yaml(3.5), 3.5),
        ((int, type(None)), yaml(None), None),
        ((int, type(None)), yaml("None"), None),
        ((list[float],), yaml([1, "1e-3", 2.5]), [1.0, 1e-3, 2.5]),
        ((list[list[int]],), yaml([[1], []]), [[1], []]),
        ((list[int | None],), yaml([1, None]), [1, None]),
        ((tuple[int, ...],), yaml([1, 2, 3]), (1, 2, 3)),
        ((tuple[int, str],), yaml([1, "a"]), (1, "a")),
        ((str,), ConfigValue(12, "override", "12"), "12"),
        ((float, str), ConfigValue(12, "override", "12"), 12.0),
    ],
)
def test_convert(kinds: tuple[type, ...], given: ConfigValue, value: object) -> None:
    found = schema.convert(given, Option(None, "", types=kinds), "KEY")
    assert found == value and type(found) is type(value)
    if isinstance(value, list | tuple):
        assert list(map(type, found)) == list(map(type, value))


@pytest.mark.parametrize(
    ("kinds", "given"),
    [
        ((float,), yaml(True)),
        ((float,), ConfigValue("1e-3", "f:1", None)),
        ((float,), yaml("1_0")),
        ((float,), yaml("infinity")),
        ((float,), yaml(None)),
        ((int,), yaml(3.0)),
        ((int,), yaml("3x")),
        ((int,), yaml(False)),
        ((bool,), yaml(0)),
        ((bool,), yaml("True ")),
        ((str,), yaml(3)),
        ((str,), yaml(None)),
        ((list[int],), yaml([1.0])),
        ((list[int],), yaml([True])),
        ((list[int],), yaml("12")),
        ((tuple[int, int],), yaml([1, 2, 3])),
        ((tuple[int, str],), yaml(["a", 1])),
    ],
)
def test_convert_refuses(kinds: tuple[type, ...], given: ConfigValue) -> None:
    with pytest.raises(InputError, match=r"^f:1: KEY: expected .*, found "):
        schema.convert(given, Option(None, "", types=kinds), "KEY")


def test_bounds_hold_for_every_item() -> None:
    option = Option([], "", types=(list[int],), range=Range(0, 5))
    assert schema.convert(yaml([0, 5]), option, "K") == [0, 5]
    with pytest.raises(InputError, match=r"^f:1: K: expected between 0 and 5, found 6$"):
        schema.convert(yaml([0, 6]), option, "K")
    with pytest.raises(InputError, match=r"^f:1: K: expected at least 0, found -1$"):
        schema.convert(yaml([[0, 1], [2, -1]]), Option([], "", types=(list[list[int]],), range=Range(0)), "K")


REGISTRIES = [MODELS, DATASETS, HEADS, SIMILARITIES, MARGINS, CRITERIA, AUXILIARIES]


@pytest.mark.parametrize("registry", REGISTRIES, ids=[registry.variable for registry in REGISTRIES])
def test_every_component_of_ours_can_be_configured(registry: Registry) -> None:
    """Its options are readable and documented, its defaults are values it would take, what was scanned is the truth."""
    for name in source_scan._scan(registry):
        component = registry.get(name)
        options = components.component_options(registry, name)
        for key, option in options.items():
            assert option.help, f"{name}.{key} has no entry under Args:"
            assert option.default is not schema.REQUIRED, f"{name}.{key} has no default"
            default = option.default
            given = ConfigValue(
                [ConfigValue(item, "") for item in default] if isinstance(default, list | tuple) else default, ""
            )
            assert schema.convert(given, option, key) == default
        declared = source_scan._scan(registry)[name]
        assert (declared.section or source_scan.section_name(name)) == source_scan.section_of(component, name)
        assert {key.lower() for key in options} <= set(declared.arguments) or not declared.arguments
