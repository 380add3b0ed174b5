"""Which components a run selects, and the options they bring into the tree.

A model's and a data set's options are in their own section; a head's are beside ``HEAD.NAME``; those of a part of a
head are beside the part's ``NAME``. Only the selected components are imported, and only to read their signatures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pycls.config import schema
from pycls.config.options import CORE, Option
from pycls.config.source_scan import section_of
from pycls.config.suggestions import did_you_mean
from pycls.config.yaml_lines import ConfigValue
from pycls.errors import InputError
from pycls.registry import AUXILIARIES, CRITERIA, DATASETS, HEADS, MARGINS, MODELS, SIMILARITIES, Registry

PARTS = {"SIMILARITY": SIMILARITIES, "MARGIN": MARGINS, "CRITERION": CRITERIA}
"""Node below HEAD -> the parts that may be named there."""

GIVEN = {
    MODELS: frozenset(
        {"in_channels", "image_size", "depth", "bn_eps", "bn_mom", "zero_init_final_gamma", "ln_eps", "activation_fun"}
    ),
    DATASETS: frozenset({"root", "split", "download"}),
    **dict.fromkeys((HEADS, *PARTS.values(), AUXILIARIES), frozenset({"in_features", "num_classes", "class_counts"})),
}
"""Arguments that are supplied when a component is built, and are no options."""

SECTIONS = {key.partition(".")[0] for key in CORE if "." in key}
"""The sections that are there whatever is selected."""


@dataclass(frozen=True)
class Component:
    """A component that the configuration names.

    Attributes:
        registry: where it is found.
        name: its name.
        named_by: the option that names it.
        node: where its options are in the tree, such as ``RESNET`` or ``HEAD.MARGIN``.
    """

    registry: Registry
    name: str
    named_by: str
    node: str

    def options(self) -> dict[str, Option]:
        """Its options by their full keys. Imports it."""
        return {f"{self.node}.{key}": option for key, option in component_options(self.registry, self.name).items()}


def given_to(registry: Registry, component: Any) -> frozenset[str]:
    """The arguments that are supplied to this component.

    One that it names in a class attribute ``own_options`` is an option of its section all the same: ``REGNET.DEPTH``
    is pycls's, beside ``MODEL.DEPTH``.
    """
    return GIVEN[registry] - getattr(component, "own_options", frozenset())


def component_options(registry: Registry, name: str) -> dict[str, Option]:
    """The options of a component, by upper-case argument name. Raises :class:`InputError` for an unknown name."""
    component = registry.get(name)
    return schema.options_of(component, given_to(registry, component))


def component_arguments(
    registry: Registry, name: str, node: Mapping[str, Any], supplied: dict[str, Any]
) -> dict[str, Any]:
    """Keyword arguments for a component: its options from ``node``, and of ``supplied`` what it has an argument for."""
    component = registry.get(name)
    own = arguments(node, component_options(registry, name))
    given = given_to(registry, component)
    return own | {k: v for k, v in supplied.items() if k in given and schema.accepts(component, k)}


def arguments(node: Mapping[str, Any], options: dict[str, Option]) -> dict[str, Any]:
    """Constructor arguments from a node of the expanded tree: the options' names in lower case -> values."""
    return {key.lower(): node[key] for key in options}


def check_name(registry: Registry, name: str, start: str) -> None:
    """Raise :class:`InputError`, with suggestions, unless the registry has ``name``. Imports nothing built in."""
    if name not in registry:
        raise InputError(f"{start}: there is no {registry.kind} named {name!r}{registry.suggestions(name)}")


def section_component(registry: Registry, name: str, named_by: str) -> Component:
    """A model or data set, with its section. Imports it. Raises :class:`InputError` if the section is taken."""
    section = section_of(registry.get(name), name)
    if section in SECTIONS:
        raise InputError(f"the {registry.kind} {name!r} must name another section (section = ...): {section} is taken")
    return Component(registry, name, named_by, section)


def choose_head(given: dict[str, ConfigValue]) -> list[Component]:
    """The head, or the parts it is spelled out by, and a criterion that replaces its own.

    Args:
        given: what the user wrote, by dotted key. A scalar ``HEAD.MARGIN`` is an option of a named head, and is seen
            here as that key; a mapping is the part, and is seen as ``HEAD.MARGIN.NAME`` and its like.

    Raises:
        InputError: for an unknown name, a head both named and spelled out, or neither.
    """
    name, chosen = head_name(given), []
    for part, registry in PARTS.items():
        key = f"HEAD.{part}.NAME"
        part_name = _text(given, key)
        if not part_name:
            continue
        if name and part != "CRITERION":
            raise InputError(_contradiction(given, key, name))
        check_name(registry, part_name, given[key].at(key))
        chosen.append(Component(registry, part_name, key, f"HEAD.{part}"))
    if name:
        check_name(HEADS, name, given["HEAD.NAME"].at("HEAD.NAME") if "HEAD.NAME" in given else "HEAD.NAME")
        return [Component(HEADS, name, "HEAD.NAME", "HEAD"), *chosen]
    _check_parts(given)
    return chosen


def head_name(given: dict[str, ConfigValue]) -> str:
    """The head by name; "" for one that is spelled out by its parts."""
    if "HEAD.NAME" in given:
        return _text(given, "HEAD.NAME")
    return "" if _text(given, "HEAD.SIMILARITY.NAME") else CORE["HEAD.NAME"].default


def _text(given: dict[str, ConfigValue], key: str) -> str:
    return schema.convert(given[key], CORE[key], key) if key in given else ""


def _contradiction(given: dict[str, ConfigValue], key: str, name: str) -> str:
    if "HEAD.NAME" not in given:
        return f"{given[key].at(key)}: a margin by name needs HEAD.SIMILARITY.NAME beside it"
    return (
        f"{given[key].at(key)}: {given['HEAD.NAME'].at('HEAD.NAME')} is {name!r} already; either name a head or spell "
        f"it out by its parts (HEAD.NAME '')"
    )


def _check_parts(given: dict[str, ConfigValue]) -> None:
    if not _text(given, "HEAD.SIMILARITY.NAME"):
        raise InputError(
            f"{given['HEAD.NAME'].at('HEAD.NAME')} is empty: name a head ({', '.join(HEADS.names())}) or give "
            f"HEAD.SIMILARITY.NAME ({', '.join(SIMILARITIES.names())})"
        )
    for part in PARTS:
        key = f"HEAD.{part}"
        if key in given and given[key].value not in (None, {}):
            raise InputError(
                f"{given[key].at(key)}: expected the part, such as {{NAME: {PARTS[part].names()[0]}}}, "
                f"found {schema.found(given[key])}: a head that is spelled out has no further options"
            )


def expand_auxiliaries(given: ConfigValue) -> list[dict[str, Any]]:
    """``HEAD.AUXILIARIES`` with every option of every entry. Raises :class:`InputError` at the line that is wrong."""
    key = "HEAD.AUXILIARIES"
    if not isinstance(given.value, list):
        raise InputError(f"{given.at(key)}: expected a list, such as [{{NAME: center}}], found {schema.found(given)}")
    return [_expand_auxiliary(item, f"{key}[{i}]") for i, item in enumerate(given.value)]


def _expand_auxiliary(item: ConfigValue, key: str) -> dict[str, Any]:
    entries = {"NAME": item} if isinstance(item.value, str) else item.value
    if not isinstance(entries, dict) or "NAME" not in entries:
        wanted = "a mapping with a NAME, such as {NAME: center}"
        raise InputError(f"{item.at(key)}: expected {wanted}, found {schema.found(item)}")
    name = schema.convert(entries["NAME"], CORE["HEAD.NAME"], f"{key}.NAME")
    check_name(AUXILIARIES, name, entries["NAME"].at(f"{key}.NAME"))
    options = component_options(AUXILIARIES, name)
    for option, given in entries.items():
        if option not in options and option != "NAME":
            raise InputError(
                f"{given.unknown(f'{key}.{option}', f'the auxiliary loss {name!r}')}, which has "
                f"{', '.join(options) or 'none'}{did_you_mean(option, options)}"
            )
    expanded = {"NAME": name}
    for option in options:
        if option in entries:
            expanded[option] = schema.convert(entries[option], options[option], f"{key}.{option}")
        elif options[option].default is schema.REQUIRED:
            raise InputError(f"{item.at(key)}: {option} must be given ({options[option].help})")
        else:
            expanded[option] = schema.default_of(options[option])
    return expanded


def head_core_keys(named: bool) -> Iterator[str]:
    """The keys below HEAD which are no component's; SIMILARITY's and MARGIN's are a spelled-out head's only."""
    for key in CORE:
        if key.startswith("HEAD.") and not (named and key in ("HEAD.SIMILARITY.NAME", "HEAD.MARGIN.NAME")):
            yield key
