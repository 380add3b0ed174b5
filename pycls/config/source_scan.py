"""What the sources of the built-in components declare, read as text: names of sections and options, without importing.

Importing a component may mean importing torch, which takes seconds. A message about a misspelt key should not.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pycls.registry import Registry


@dataclass(frozen=True)
class ScannedComponent:
    """A component as its source declares it.

    Attributes:
        section: the section of its options; None where the class does not say and its name decides.
        arguments: the arguments of its constructor that are written down there.
    """

    section: str | None
    arguments: tuple[str, ...]


def section_name(name: str) -> str:
    """The section of a component that does not name one: ``wide-resnet`` -> ``WIDE_RESNET``."""
    return re.sub(r"\W", "_", name).upper()


def section_of(component: Any, name: str) -> str:
    """The section of a component at hand: its attribute ``section``, else after its name."""
    return getattr(component, "section", None) or section_name(name)


def sections(registry: Registry) -> dict[str, list[str]]:
    """Section -> names of the components that have it."""
    declared = _scan(registry)
    found: dict[str, list[str]] = {}
    for name in registry.names():
        if name in declared:
            section = declared[name].section or section_name(name)
        else:
            section = section_of(registry.get(name), name)  # registered by a user's module, which is imported already
        found.setdefault(section, []).append(name)
    return found


def argument_names(registry: Registry, name: str) -> tuple[str, ...]:
    """The arguments of a built-in component's constructor as far as its source shows them; () for another component."""
    scanned = _scan(registry).get(name)
    return scanned.arguments if scanned else ()


@cache
def _scan(registry: Registry) -> dict[str, ScannedComponent]:
    folder = Path(__file__).parents[1].joinpath(*registry.package.split(".")[1:])
    found = {}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"@{registry.variable}.register" in text:
            for node in ast.parse(text).body:
                found.update({name: _scan_node(node) for name in _registered_names(node, registry)})
    return found


def _registered_names(node: ast.stmt, registry: Registry) -> Iterator[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{registry.variable}.register":
                yield ast.literal_eval(call.args[0])


def _scan_node(node: ast.stmt) -> ScannedComponent:
    section, function = None, node
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                function = item
            elif isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
                targets = item.targets if isinstance(item, ast.Assign) else [item.target]
                if [ast.unparse(target) for target in targets] == ["section"]:
                    section = ast.literal_eval(item.value)
    if not isinstance(function, ast.FunctionDef):
        return ScannedComponent(section, ())
    arguments = (*function.args.args, *function.args.kwonlyargs)
    return ScannedComponent(section, tuple(argument.arg for argument in arguments if argument.arg != "self"))
