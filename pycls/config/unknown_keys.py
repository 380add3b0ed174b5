"""Unknown keys: each is an error that says why, and which option may be meant."""

import difflib
from collections.abc import Iterable

from pycls.config import components, schema, source_scan
from pycls.config.components import SECTIONS, Component
from pycls.config.options import CORE
from pycls.config.suggestions import did_you_mean
from pycls.config.yaml_lines import ConfigValue
from pycls.errors import InputError
from pycls.registry import DATASETS, HEADS, MODELS, Registry

Given = dict[str, ConfigValue]
"""What the user wrote, by dotted key."""


def check_core(given: Given) -> None:
    """Raise :class:`InputError` for an unknown key in a core section or on the top level. Imports no component."""
    for key, entry in given.items():
        section, dot, _ = key.partition(".")
        if key in CORE or (section == "HEAD" and dot) or (not dot and _is_empty(entry)):
            continue
        if key in SECTIONS:
            raise InputError(f"{entry.at(key)} is a section: expected its options, found {schema.found(entry)}")
        if section in SECTIONS or not dot:
            raise InputError(_unknown(key, entry, _possible_keys(key, given)))


def check_sections(given: Given, selected: Iterable[tuple[Registry, str, str]]) -> None:
    """Raise :class:`InputError` for a section of no component, or of none that is selected. Imports none built in.

    Args:
        given: what the user wrote.
        selected: registry, name, and the option that names it, of the model and the data sets.
    """
    for key, entry in given.items():
        section = key.partition(".")[0]
        if section in SECTIONS or key in CORE:
            continue
        owners = {registry: source_scan.sections(registry).get(section, []) for registry in (MODELS, DATASETS)}
        if any(name in owners[registry] for registry, name, _ in selected):
            continue
        for registry, name, named_by in selected:
            if owners[registry]:
                raise InputError(f"{entry.at(key)} has no effect: {named_by} is {name}")
        raise InputError(_unknown(key, entry, _possible_keys(key, given)))


def check_all(given: Given, catalogue: Iterable[str], chosen: list[Component]) -> None:
    """Raise :class:`InputError` for a key that is not in ``catalogue``, the run's options."""
    catalogue = list(catalogue)
    for key, entry in given.items():
        if key not in catalogue and not _is_empty_part(key, entry):
            raise InputError(_explain(key, entry, catalogue, chosen))


def _is_empty(entry: ConfigValue) -> bool:
    return entry.value is None or entry.value == {}


def _is_empty_part(key: str, entry: ConfigValue) -> bool:
    """Whether it is an empty section, or a part of a head with nothing, or the name "", in it."""
    parts = key.split(".")
    if len(parts) == 1:
        return _is_empty(entry)
    is_part = parts[0] == "HEAD" and parts[1] in components.PARTS
    return is_part and ((len(parts) == 2 and _is_empty(entry)) or (parts[2:] == ["NAME"] and entry.value == ""))


def _unknown(key: str, entry: ConfigValue, known: Iterable[str]) -> str:
    return f"{entry.unknown(key)}{did_you_mean(key, known)}"


def _explain(key: str, entry: ConfigValue, catalogue: list[str], chosen: list[Component]) -> str:
    nodes = {one.node: one for one in chosen}
    parts = key.split(".")
    if len(parts) > 2 and parts[0] == "HEAD" and parts[1] in components.PARTS and f"HEAD.{parts[1]}" not in nodes:
        by_name = "HEAD" in nodes and parts[1] != "CRITERION"
        reason = f"HEAD.NAME is {nodes['HEAD'].name}" if by_name else f"HEAD.{parts[1]}.NAME is empty"
        return f"{entry.at(key)} has no effect: {reason}"
    owners = [one for one in chosen if key.startswith(f"{one.node}.")]
    if not owners:
        return _unknown(key, entry, catalogue)
    owner = max(owners, key=lambda one: len(one.node))
    own = [known for known in catalogue if known.startswith(f"{owner.node}.")]
    hint = did_you_mean(key, own) or (f"; it has {', '.join(own)}" if own else "; it has no options")
    return f"{entry.unknown(key, f'the {owner.registry.kind} {owner.name!r}')}{hint}"


def _possible_keys(key: str, given: Given) -> set[str]:
    """Keys to suggest: core's options, the selected components' as far as their sources show, and the
    same option in the section that this one's name is like."""
    possible = set(CORE)
    for registry, named_by in ((MODELS, "MODEL.TYPE"), (DATASETS, "TRAIN.DATASET"), (HEADS, "HEAD.NAME")):
        name = str(given[named_by].plain() if named_by in given else CORE[named_by].default)
        node = "HEAD" if registry is HEADS else source_scan.section_name(name)
        arguments = set(source_scan.argument_names(registry, name)) - components.GIVEN[registry]
        possible |= {f"{node}.{argument.upper()}" for argument in arguments}
    section, _, rest = key.partition(".")
    if rest and section not in SECTIONS:
        for registry in (MODELS, DATASETS):
            owners = source_scan.sections(registry)
            for close in difflib.get_close_matches(section.upper(), owners, n=1):
                if any(rest.lower() in source_scan.argument_names(registry, name) for name in owners[close]):
                    possible.add(f"{close}.{rest.upper()}")
    return possible - {key}
