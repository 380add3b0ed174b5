"""A run's configuration: YAML file and overrides -> the checked and complete tree of options, and back to YAML.

The tree is a frozen ``yacs`` node with every option that has a meaning for the run: the core options
(``pycls/config/options.py``) and those of the selected components. What is wrong is found here, before data, model or
processes exist, and what can be said without importing a component is said before one is imported.
"""

import fnmatch
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from pycls.config import aliases, checks, components, no_effect, schema, stage2, unknown_keys
from pycls.config.components import Component
from pycls.config.help import describe as describe
from pycls.config.options import CORE, IRRELEVANT_TO_RESULT, Option
from pycls.config.source_scan import section_of
from pycls.config.unknown_keys import Given
from pycls.config.user_imports import import_modules
from pycls.config.yaml_lines import leaves, put, read_file, read_overrides
from pycls.errors import InputError
from pycls.registry import DATASETS, HEADS, MODELS, Registry

logger = logging.getLogger(__name__)


def load(
    cfg_file: str | None, overrides: Sequence[str] = (), notify: Callable[[str], None] = logger.warning
) -> CfgNode:
    """The complete tree of options, validated and frozen.

    Args:
        cfg_file: a YAML file, or None for defaults and overrides alone.
        overrides: ``KEY VALUE`` pairs or ``KEY=VALUE`` words, which win over the file, the later over the earlier.
        notify: told in one line of each option of pycls that has another name here, and of each option that the user has
            set and that has no effect in this run.

    Raises:
        InputError: one line with the file and line, or the override, and what would be right.
    """
    tree = read_file(cfg_file) if cfg_file is not None else {}
    for key, value in read_overrides(overrides):
        put(tree, key, value)
    written = leaves(tree)
    given, notices = aliases.translate(written)
    for notice in notices:
        notify(notice)
    whole, second = stage2.split_stages(given)
    values = _values(whole, cfg_file)
    given_later = stage2.given_of(whole, second, values["STAGE2.METHOD"])
    later = _values(given_later, cfg_file) if values["STAGE2.METHOD"] != "none" else {}
    given_later = given_later if second else {}
    for notice in no_effect.notices((values, whole), (later, given_later), frozenset(second), no_effect.origin(written)):
        notify(notice)
    cfg = _frozen(values | {f"{stage2.SECTION}{key}": later[key] for key in second})
    if later:
        cfg.__dict__[_LAST] = _frozen(later | {"OUT_DIR": str(Path(values["OUT_DIR"]) / "stage2")})
    return cfg


_LAST = "last_stage"
"""Attribute of a tree with a second stage: the second stage's own tree, which is no option."""


def last_stage(cfg: CfgNode) -> CfgNode:
    """The tree of the run's last stage: of the second, in its own folder in OUT_DIR, if there is one, else ``cfg``."""
    last: CfgNode = cfg.__dict__.get(_LAST, cfg)
    return last


def _frozen(values: dict[str, Any]) -> CfgNode:
    cfg = CfgNode(_nest(values))
    cfg.freeze()
    return cfg


def _values(given: Given, cfg_file: str | None) -> dict[str, Any]:
    """The value of every option that has a meaning for the run, by dotted key; all that is wrong is found here."""
    unknown_keys.check_core(given)
    values = {key: _value(key, option, given) for key, option in CORE.items()}
    checks.check(values, given)
    values["IMPORTS"] = _import_user_modules(values["IMPORTS"], given, cfg_file)
    values["HEAD.NAME"] = components.head_name(given)
    values["OUT_DIR"] = values["OUT_DIR"] or f"runs/{Path(cfg_file).stem if cfg_file else values['MODEL.TYPE']}"
    chosen = _choose(values, given)
    catalogue = _catalogue(chosen, named=bool(values["HEAD.NAME"]))
    unknown_keys.check_all(given, catalogue, chosen)
    _check_depth(values, given)
    if "HEAD.AUXILIARIES" in given:
        values["HEAD.AUXILIARIES"] = components.expand_auxiliaries(given["HEAD.AUXILIARIES"])
    values |= {key: _value(key, option, given) for key, option in catalogue.items() if key not in values}
    return {key: values[key] for key in catalogue}


def _value(key: str, option: Option, given: Given) -> Any:
    if key in given:
        return schema.convert(given[key], option, key)
    if option.default is schema.REQUIRED:
        raise InputError(f"{key} must be given: it has no default ({option.help})")
    return schema.default_of(option)


def _import_user_modules(names: list[str], given: Given, cfg_file: str | None) -> list[str]:
    try:
        return import_modules(names, Path(cfg_file).parent if cfg_file else None)
    except InputError as error:
        raise InputError(f"{given['IMPORTS'].at('IMPORTS')}: {error}") from error


def _choose(values: dict[str, Any], given: Given) -> list[Component]:
    """The selected components. Every name and section is checked before any of them is imported."""
    selected = [(MODELS, values["MODEL.TYPE"], "MODEL.TYPE")]
    selected += [(DATASETS, values[key], key) for key in ("TRAIN.DATASET", "TEST.DATASET", "TEST.OPEN_SET") if values[key]]
    for registry, name, key in selected:
        components.check_name(registry, name, given[key].at(key) if key in given else key)
    head = components.choose_head(given)
    unknown_keys.check_sections(given, selected)
    chosen: dict[str, Component] = {}
    for registry, name, key in selected:
        one = components.section_component(registry, name, key)
        other = chosen.setdefault(one.node, one)
        if (other.registry, other.name) != (registry, name):
            raise InputError(f"{other.named_by} {other.name} and {key} {name} have the same section, {one.node}")
    return [*chosen.values(), *head]


def _catalogue(chosen: list[Component], named: bool) -> dict[str, Option]:
    """Every option that has a meaning for the run, by dotted key."""
    head = set(components.head_core_keys(named))
    catalogue = {key: option for key, option in CORE.items() if not key.startswith("HEAD.") or key in head}
    for one in chosen:
        for key, option in one.options().items():
            if key in CORE or key in catalogue or any(known.startswith(f"{key}.") for known in catalogue):
                raise InputError(f"the {one.registry.kind} {one.name!r} cannot have an option named {key}: it is taken")
            catalogue[key] = option
    return catalogue


def _check_depth(values: dict[str, Any], given: Given) -> None:
    """MODEL.DEPTH is core, as in pycls, but what it may be is the model's to say."""
    key, name, depth = "MODEL.DEPTH", values["MODEL.TYPE"], values["MODEL.DEPTH"]
    component = MODELS.get(name)
    given_to = components.given_to(MODELS, component)
    option = schema.options_of(component, given_to - {"depth"}).get("DEPTH") if "depth" in given_to else None
    if option is None and depth:
        raise InputError(f"{given[key].at(key)} has no effect: the model {name!r} does not come in depths")
    if option is not None and depth:
        schema.convert(given[key], option, key)
    elif option is not None and option.default is schema.REQUIRED:
        raise InputError(f"{key} must be given for the model {name!r} ({option.help})")


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *above, own = key.split(".")
        node = tree
        for section in above:
            node = node.setdefault(section, {})
        node[own] = value
    return tree


# --- from the tree to constructors


def arguments(node: Mapping[str, Any], options: dict[str, Option]) -> dict[str, Any]:
    """Constructor arguments from a node of the tree: the options' names in lower case -> values."""
    return components.arguments(node, options)


def model_arguments(cfg: CfgNode, **supplied: Any) -> dict[str, Any]:
    """Keyword arguments for ``MODELS.get(cfg.MODEL.TYPE)``.

    Args:
        cfg: the tree.
        supplied: what only the composition root knows (``in_channels``, ``image_size``). Of these, and of the options
            of ``MODEL``, ``BN`` and ``LN`` that several models share, a model gets those it has arguments for.
    """
    shared = {
        "bn_eps": cfg.BN.EPS,
        "bn_mom": cfg.BN.MOM,
        "zero_init_final_gamma": cfg.BN.ZERO_INIT_FINAL_GAMMA,
        "ln_eps": cfg.LN.EPS,
        "activation_fun": cfg.MODEL.ACTIVATION_FUN,
    }
    if cfg.MODEL.DEPTH:
        shared["depth"] = cfg.MODEL.DEPTH
    return _section_arguments(cfg, MODELS, cfg.MODEL.TYPE, shared | supplied)


def model_section(name: str) -> str:
    """The section of a model's own options."""
    return section_of(MODELS.get(name), name)


def dataset_arguments(cfg: CfgNode, name: str, **supplied: Any) -> dict[str, Any]:
    """Keyword arguments for ``DATASETS.get(name)``; ``supplied``: ``root``, ``split``, ``download``."""
    return _section_arguments(cfg, DATASETS, name, {"download": cfg.DATA.DOWNLOAD} | supplied)


def _section_arguments(cfg: CfgNode, registry: Registry, name: str, supplied: dict[str, Any]) -> dict[str, Any]:
    section = cfg.get(section_of(registry.get(name), name), {})
    return components.component_arguments(registry, name, section, supplied)


def head_arguments(cfg: CfgNode, **supplied: Any) -> dict[str, Any]:
    """Keyword arguments for ``HEADS.get(cfg.HEAD.NAME)``.

    Args:
        cfg: the tree.
        supplied: ``in_features``, ``num_classes``, ``class_counts``; a head gets those it has arguments for.
    """
    return part_arguments(HEADS, cfg.HEAD, **supplied)


def part_arguments(registry: Registry, node: Mapping[str, Any], **supplied: Any) -> dict[str, Any]:
    """Keyword arguments for ``registry.get(node["NAME"])``.

    Args:
        registry: SIMILARITIES, MARGINS, CRITERIA or AUXILIARIES.
        node: ``cfg.HEAD.SIMILARITY``, ``.MARGIN``, ``.CRITERION``, or an entry of ``cfg.HEAD.AUXILIARIES``.
        supplied: as for a head; a part gets those it has an argument for.
    """
    return components.component_arguments(registry, node["NAME"], node, supplied)


def with_value(cfg: CfgNode, key: str, value: Any) -> CfgNode:
    """A copy of the tree, and of its second stage's, in which one option, by dotted key, has this value."""
    copy = cfg.clone()
    for tree in {id(tree): tree for tree in (copy, last_stage(copy))}.values():
        tree.defrost()
        tree.merge_from_list([key, value])
        tree.freeze()
    return copy


def import_user_modules(cfg: CfgNode) -> None:
    """Import the modules of ``IMPORTS``, in a process that did not load the tree itself."""
    import_modules(cfg.IMPORTS)


# --- from the tree to text


class _Dumper(yaml.SafeDumper):
    """Sections in blocks, lists of numbers and words in one line."""

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        flat = not any(isinstance(item, list | tuple | dict) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(list, _Dumper.represent_list)
_Dumper.add_representer(tuple, _Dumper.represent_list)


def dump(cfg: Mapping[str, Any]) -> str:
    """The tree as YAML, sections and options sorted. Loading it gives the same tree."""
    return yaml.dump(_plain(cfg), Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    """Bare dicts and lists, for YAML and for comparison."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes two trees different trainings, a line each: ``OPTIM.BASE_LR: 0.1 -> 0.2``.

    Options that do not change the result (``options.IRRELEVANT_TO_RESULT``) and those of a data set that is only tested
    on are left out. One that a tree lacks is ``(absent)``; load an older file first to have its defaults filled in.
    """
    before, after = _flat(old), _flat(new)
    lines = []
    for key in sorted({*before, *after}):
        a, b = before.get(key, _ABSENT), after.get(key, _ABSENT)
        # True == 1 == 1.0, which are different settings
        if (type(a), a) != (type(b), b) and not any(fnmatch.fnmatchcase(key, p) for p in IRRELEVANT_TO_RESULT):
            lines.append(f"{key}: {_shown(a)} -> {_shown(b)}")
    return lines


_ABSENT: Any = object()


def _shown(value: Any) -> str:
    return "(absent)" if value is _ABSENT else repr(value)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, value in tree.items():
        if section in _tested_only(tree):
            continue
        _flatten_into(flat, section, _plain(value))
    return flat


def _flatten_into(flat: dict[str, Any], key: str, value: Any) -> None:
    if not isinstance(value, dict):
        flat[key] = value
        return
    for name, item in value.items():
        _flatten_into(flat, f"{key}.{name}", item)


def _tested_only(tree: Mapping[str, Any]) -> set[str]:
    train, test = tree.get("TRAIN", {}).get("DATASET"), tree.get("TEST", {})
    names = {test.get("DATASET"), test.get("OPEN_SET")} - {train, "", None}
    return {section_of(DATASETS.get(name), name) for name in names if name in DATASETS}
