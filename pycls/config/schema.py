"""The signature is the schema: constructor -> options, and the check of what is given for an option.

An option of a component is a keyword argument of its constructor: the name in upper case is the key, the annotation the
type (``Annotated[float, Range(0, 1)]`` the range of a number, too), the default the default, the entry under ``Args:`` in
the docstring the meaning. So it is written once.
"""

import copy
import difflib
import inspect
import math
import re
import sys
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pycls.config.options import Option
from pycls.config.yaml_lines import ConfigValue
from pycls.errors import InputError
from pycls.ranges import complaint, range_of

NoneType = type(None)
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\Z")
SCALARS = {
    bool: "True or False (bool)",
    int: "a whole number (int)",
    float: "a number (float)",
    str: "a string (str)",
    NoneType: "None",
}


class _Required:
    """The default of an option that has none."""

    def __repr__(self) -> str:
        return "(required)"


REQUIRED: Any = _Required()


def options_of(component: Any, given: frozenset[str] = frozenset()) -> dict[str, Option]:
    """The options of a class or function, in the order of its signature.

    Args:
        component: a class, whose ``__init__`` is read, or a function.
        given: arguments that are supplied from elsewhere and are therefore no options.

    Returns:
        Upper-cased argument name -> option. One without a default has :data:`REQUIRED` as its default.

    Raises:
        InputError: if an argument's annotation is nothing that a YAML file could hold.
    """
    meanings = argument_docs(component)
    hints = get_type_hints(_callable(component))
    ranged = get_type_hints(_callable(component), include_extras=True)
    options = {}
    for name, parameter in _parameters(component).items():
        if name in given:
            continue
        kinds, choices = _read_annotation(component, name, hints.get(name), parameter.default)
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        allowed = range_of(ranged.get(name))
        options[name.upper()] = Option(default, meanings.get(name, ""), choices=choices, range=allowed, types=kinds)
    return options


def accepts(component: Any, name: str) -> bool:
    """Whether a class's ``__init__`` or a function has the argument ``name``."""
    return name in _parameters(component)


def _callable(component: Any) -> Any:
    return component.__init__ if inspect.isclass(component) else component


def _parameters(component: Any) -> dict[str, inspect.Parameter]:
    parameters = list(inspect.signature(_callable(component)).parameters.values())
    if inspect.isclass(component):
        parameters = parameters[1:]  # self
    return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _read_annotation(component: Any, name: str, hint: Any, default: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The types of an argument, and its choices if it is a plain ``Literal`` (or None)."""
    if hint is None and default is not inspect.Parameter.empty:
        hint = type(default)
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if not all(map(_is_readable, kinds)):
        raise InputError(
            f"{component.__module__}.{component.__qualname__} cannot be configured: its argument {name!r} has no type "
            f"that YAML can hold (bool, int, float, str, Literal, list[...], tuple[...] or | None)"
        )
    literals = [kind for kind in kinds if get_origin(kind) is Literal]
    if not literals or len(literals) + (NoneType in kinds) != len(kinds):
        return kinds, ()
    choices = [choice for kind in literals for choice in get_args(kind)]
    if NoneType in kinds:
        choices.append(None)
    return tuple(dict.fromkeys(map(type, choices))), tuple(choices)


def _is_readable(kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (list, tuple):
        return bool(get_args(kind)) and all(item is Ellipsis or _is_readable(item) for item in get_args(kind))
    return kind in SCALARS or origin is Literal


def argument_docs(component: Any) -> dict[str, str]:
    """Argument -> its entry under ``Args:`` in the docstring (Google style), continuation lines joined."""
    text = inspect.getdoc(component) or ""
    if "Args:" not in text and inspect.isclass(component):
        text = inspect.getdoc(component.__init__) or ""
    meanings: dict[str, str] = {}
    names: list[str] = []
    indent = None
    inside = False
    for line in text.splitlines():
        if not inside:
            inside = line.strip() == "Args:"
            continue
        depth = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if not depth:
            break
        indent = indent or depth
        entry = re.match(r"\s*([*\w]+(?:, *[*\w]+)*)(?: *\([^)]*\))?: *(.*)", line)
        if depth <= indent and entry:
            names = [name.strip(" *") for name in entry[1].split(",")]
            meanings.update(dict.fromkeys(names, entry[2].strip()))
        else:
            meanings.update({name: f"{meanings[name]} {line.strip()}".strip() for name in names})
    return meanings


def summary_of(component: Any) -> str:
    """The first paragraph of the docstring, in one line; empty where it has none itself."""
    own = component.__doc__
    return " ".join(inspect.cleandoc(own).partition("\n\n")[0].split()) if own else ""


def kinds_of(option: Option) -> tuple[Any, ...]:
    """The types a value of this option may have."""
    return option.types or (type(option.default),)


def type_name(kind: Any) -> str:
    """A type as written in a signature."""
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return "None" if kind is NoneType else kind.__name__ if inspect.isclass(kind) and not get_args(kind) else str(kind)


def _expectation(option: Option) -> str:
    if option.choices:
        return "one of " + listed(option.choices)
    return " or ".join(SCALARS.get(kind) or _list_name(kind) or type_name(kind) for kind in kinds_of(option))


def listed(choices: tuple[Any, ...]) -> str:
    """The choices as a user writes them."""
    return ", ".join(str(choice) if choice != "" else "''" for choice in choices)


def _list_name(kind: Any) -> str:
    if get_origin(kind) not in (list, tuple) and kind not in (list, tuple):
        return ""
    return f"a list ({type_name(kind)})"


def default_of(option: Option) -> Any:
    """A copy of the default: a list in a signature is shared by all calls."""
    return copy.deepcopy(option.default)


def convert(given: ConfigValue, option: Option, key: str) -> Any:
    """The value of an option: of one of its types, one of its choices, within its range.

    An int is taken for a float, ``1e-3`` for the number that YAML 1.1 does not see in it, unquoted ``on`` for the
    choice ``"on"``, and a list for a tuple. Text is never taken for a number otherwise, nor a bool for an int.

    Raises:
        InputError: naming the place, what was expected and what was found.
    """
    start = given.at(key)
    value = option.aliases[given.value] if _is_alias(given, option) else _fit_any(given, option)
    if value is REQUIRED or (option.choices and not _is_choice(value, option.choices)):
        raise InputError(f"{start}: expected {_expectation(option)}, found {found(given)}{_hint(given, option)}")
    if wrong := complaint(value, option.range):
        raise InputError(f"{start}: {wrong}")
    return value


def found(given: ConfigValue) -> str:
    """What was found, with its type where that is not plain to see."""
    value = given.plain()
    return repr(value) if isinstance(value, list | dict | NoneType) else f"{value!r} ({type(value).__name__})"


def _is_alias(given: ConfigValue, option: Option) -> bool:
    return isinstance(given.value, str) and given.value in option.aliases


def _is_choice(value: Any, choices: tuple[Any, ...]) -> bool:
    return any(value == choice and type(value) is type(choice) for choice in choices)


def _hint(given: ConfigValue, option: Option) -> str:
    if option.choices and isinstance(given.value, str):
        words = [choice for choice in (*option.choices, *option.aliases) if isinstance(choice, str)]
        close = difflib.get_close_matches(given.value.lower(), words, n=1, cutoff=0.5)
        return f"; did you mean {close[0]!r}?" if close else ""
    if not option.choices and str in kinds_of(option) and not isinstance(given.value, list | dict | NoneType | str):
        return "; put it in quotes"
    return ""


def _fit_any(given: ConfigValue, option: Option) -> Any:
    """The value as the first of the option's types that it fits, or REQUIRED for none."""
    if given.text is not None and given.text in option.choices and not _is_choice(given.value, option.choices):
        return given.text
    # text fits anything that is typed on a command line: it is tried last
    for kind in sorted(kinds_of(option), key=lambda kind: kind is str):
        value = _fit(given, kind)
        if value is not REQUIRED:
            return value
    return REQUIRED


def _fit(given: ConfigValue, kind: Any) -> Any:
    value = given.value
    if get_origin(kind) in (list, tuple) or kind in (list, tuple):
        return _fit_list(given, get_origin(kind) or kind, get_args(kind))
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if _is_choice(value, choices):
            return value
        return given.text if given.text is not None and given.text in choices else REQUIRED
    if kind is float:
        return _fit_float(given)
    if kind is str:
        return given.text if given.is_override and given.text is not None else value if type(value) is str else REQUIRED
    if kind is NoneType and given.text == "None":
        return None
    return value if type(value) is kind else REQUIRED


def _fit_float(given: ConfigValue) -> Any:
    value = given.value
    if isinstance(value, str) and value == given.text and NUMBER.match(value):
        return float(value)
    if type(value) is int and abs(value) > sys.float_info.max:
        return math.inf if value > 0 else -math.inf
    return float(value) if type(value) in (int, float) and not math.isnan(value) else REQUIRED


def _fit_list(given: ConfigValue, sequence: type, items: tuple[Any, ...]) -> Any:
    """A list or tuple of items; ``tuple[int, ...]`` has any length, ``tuple[int, int]`` its own."""
    if not isinstance(given.value, list):
        return REQUIRED
    if not items:
        return sequence(given.plain())
    if sequence is list or items[-1] is Ellipsis:
        items = (items[0],) * len(given.value)
    if len(items) != len(given.value):
        return REQUIRED
    pairs = zip(given.value, items, strict=True)
    values = [_fit_any(item, Option(None, "", types=_members(kind))) for item, kind in pairs]
    return REQUIRED if any(value is REQUIRED for value in values) else sequence(values)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
