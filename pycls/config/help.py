"""``--help-options``: every option with its type, default, choices and meaning, for a terminal.

The texts are the options' own; those of a component come from its docstring, and only what is asked for is imported.
"""

import shutil
import textwrap
from collections.abc import Iterator
from itertools import chain

from pycls.config import aliases, components, schema, source_scan
from pycls.config.components import PARTS, SECTIONS
from pycls.config.options import CORE, Option
from pycls.config.suggestions import suggested_keys
from pycls.errors import InputError
from pycls.registry import AUXILIARIES, DATASETS, HEADS, MODELS, Registry

HEAD_GROUPS: dict[str, Registry] = {"NAME": HEADS, **PARTS, "AUXILIARIES": AUXILIARIES}
"""Option below HEAD -> what it names."""


def describe(section: str | None = None) -> str:
    """The help text of a section, a component or one option; the core options and the lists of components for None.

    Args:
        section: a section of core options (``OPTIM``), one of components (``RESNET``), ``HEAD``, one head
            (``HEAD.cosface``), the parts of one kind (``HEAD.MARGIN``) or one of them
            (``HEAD.MARGIN.additive_cosine``), a component's name, an option's key, or ``ALL``. Case does not matter.

    Raises:
        InputError: for a section that does not exist, with suggestions.
    """
    blocks: Iterator[str]
    if section is None:
        blocks = chain(_core_blocks(CORE), _component_lists())
    elif section.upper() == "ALL":
        blocks = chain(_core_blocks(CORE), _registry_blocks(MODELS), _registry_blocks(DATASETS), _head_blocks())
    else:
        blocks = _find(section)
    return "\n\n".join(blocks)


def _find(section: str) -> Iterator[str]:
    key = section.upper()
    own, _, rest = key.partition(".")
    if key == "HEAD":
        return chain(_core_blocks({k: o for k, o in CORE.items() if k.startswith("HEAD.")}), _head_blocks())
    if key in SECTIONS:
        lists = {"MODEL": (MODELS,), "DATA": (DATASETS,), "TRAIN": (DATASETS,)}.get(key, ())
        return chain(_core_blocks({k: o for k, o in CORE.items() if k.startswith(f"{key}.")}), map(_names, lists))
    if key in CORE:
        return iter([_entry(key, CORE[key])])
    if key in aliases.TABLE or key in aliases.SECOND_NAMES:
        return iter([f"  {aliases.describe(key)}"])
    if own == "HEAD" and (found := _find_in_head(rest)) is not None:
        return found
    found_blocks = list(_component_blocks(own, rest))
    if found_blocks:
        return iter(found_blocks)
    known = {*CORE, *SECTIONS, *source_scan.sections(MODELS), *source_scan.sections(DATASETS)}
    known |= {f"HEAD.{name}".upper() for name in HEADS.names()}
    close = suggested_keys(key, known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(sorted(SECTIONS))}"
    raise InputError(f"--help-options: there is no section or option {section}; {hint}")


def _find_in_head(rest: str) -> Iterator[str] | None:
    """``COSFACE``, ``MARGIN`` or ``MARGIN.ADDITIVE_COSINE``."""
    group, _, name = rest.partition(".")
    if group in HEAD_GROUPS and group != "NAME":
        registry = HEAD_GROUPS[group]
        if not name:
            return _registry_blocks(registry, f"HEAD.{group}")
        return _named_blocks(registry, name, f"HEAD.{group}")
    return None if name else _named_blocks(HEADS, rest, "HEAD")


def _named_blocks(registry: Registry, upper: str, node: str) -> Iterator[str] | None:
    names = [name for name in registry.names() if name.upper() == upper]
    return iter([_component(registry, name, node) for name in names]) if names else None


def _component_blocks(section: str, option: str) -> Iterator[str]:
    """The models and data sets with this section or name; one option of theirs if ``option`` is given."""
    for registry in (MODELS, DATASETS):
        for found, names in source_scan.sections(registry).items():
            for name in names:
                if section not in (found, name.upper()):
                    continue
                if not option:
                    yield _component(registry, name, found)
                elif option in (options := components.component_options(registry, name)):
                    yield _entry(f"{found}.{option}", options[option])


def _core_blocks(options: dict[str, Option]) -> Iterator[str]:
    """A block for each section, in the order of the options."""
    by_section: dict[str, list[str]] = {}
    for key, option in options.items():
        by_section.setdefault(key.rpartition(".")[0].partition(".")[0], []).append(_entry(key, option))
    return ("\n".join(entries) for entries in by_section.values())


def _component_lists() -> Iterator[str]:
    yield from map(_names, (MODELS, DATASETS, HEADS))
    yield _wrap(
        "A model's and a data set's options are in the section that has its name: --help-options RESNET. Those of a "
        "head are beside HEAD.NAME: --help-options HEAD, or HEAD.cosface for one. --help-options ALL shows everything.",
        "",
    )


def _names(registry: Registry) -> str:
    listed = ", ".join(registry.names())
    return _wrap(f"{registry.kind.capitalize()}s: {listed}", "  ")


def _registry_blocks(registry: Registry, node: str = "") -> Iterator[str]:
    for name in registry.names():
        yield _component(registry, name, node or source_scan.section_of(registry.get(name), name))


def _head_blocks() -> Iterator[str]:
    for group, registry in HEAD_GROUPS.items():
        yield f"--- HEAD.{group}: {registry.kind}"
        yield from _registry_blocks(registry, "HEAD" if group == "NAME" else f"HEAD.{group}")


def _component(registry: Registry, name: str, node: str) -> str:
    """A component: its title, the first paragraph's first sentence of its docstring, its options."""
    component = registry.get(name)
    summary = schema.summary_of(component)
    options = components.component_options(registry, name)
    lines = [_wrap(f"{registry.kind} {name}" + (f": {summary}" if summary else ""), "  ")]
    lines += [_entry(f"{node}.{key}", option) for key, option in options.items()]
    return "\n".join(lines if options else [*lines, "    no options"])


def _entry(key: str, option: Option) -> str:
    """``KEY  type = default`` and the meaning below it."""
    kind = "|".join(map(schema.type_name, schema.kinds_of(option)))
    default = "(required)" if option.default is schema.REQUIRED else repr(option.default)
    facts = [option.help.rstrip(".")] if option.help else []
    if option.choices:
        facts.append("one of " + schema.listed(option.choices))
    facts += [f"{name} is another name of {choice}" for name, choice in option.aliases.items()]
    if option.range is not None:
        facts.append(str(option.range))
    title = f"  {key}  {kind} = {default}"
    return "\n".join([title, *filter(None, [_wrap("; ".join(facts), " " * 6, first=" " * 6)])])


def _wrap(text: str, indent: str, first: str = "") -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.fill(
        " ".join(text.split()),
        max(width, 40),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
