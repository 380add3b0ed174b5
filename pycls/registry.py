"""Name -> component. A registry knows the names in its folder without importing any of them.

``@HEADS.register("arcface")`` above a class or a function puts it under that name. The names of the built-in components
are read off the source text of the folder, so that listing them, and suggesting one for a misspelt name, costs
milliseconds and not an import of torch; a component's module is imported when it is first asked for. A user's modules
register theirs in the same way when they are imported (``IMPORTS:`` in the YAML).
"""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pycls.errors import InputError
from pycls.ranges import in_range

T = TypeVar("T")


class Registry:
    """The components of one kind.

    Args:
        kind: what an entry is called in messages, such as ``"head"``.
        variable: the name this registry is bound to in this module, by which sources register (``HEADS``).
        package: the package whose files hold the built-in entries.
    """

    def __init__(self, kind: str, variable: str, package: str) -> None:
        self.kind = kind
        self.variable = variable
        self.package = package
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a component under ``name`` and has it refuse numbers outside the ranges in its annotations.

        Raises ``ValueError`` if another one has the name.
        """

        def file(component: T) -> T:
            known = self._entries.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (
                component.__module__,
                component.__qualname__,  # type: ignore[attr-defined]
            ):
                raise ValueError(f"two {self.kind}s are named {name!r}: {known.__module__} and {component.__module__}")
            self._entries[name] = checked = _checked(component)
            return checked

        return file

    @cached_property
    def _built_in(self) -> dict[str, str]:
        """Name -> module of the entries in this registry's folder, by their text."""
        pattern = re.compile(rf'^@{self.variable}\.register\(\s*"([^"]+)"', re.MULTILINE)
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        return {
            name: f"{self.package}.{path.stem}"
            for path in sorted(folder.glob("*.py"))
            for name in pattern.findall(path.read_text(encoding="utf-8"))
        }

    def names(self) -> list[str]:
        """Every name, sorted, including those that imported user modules registered. Imports nothing."""
        return sorted({*self._built_in, *self._entries})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._built_in

    def get(self, name: str) -> Any:
        """The component of this name, imported if need be. Raises :class:`InputError` with suggestions."""
        if name not in self._entries and name in self._built_in:
            importlib.import_module(self._built_in[name])
        if name not in self._entries:
            raise InputError(f"there is no {self.kind} named {name!r}{self.suggestions(name)}")
        return self._entries[name]

    def suggestions(self, name: str) -> str:
        """The end of an error message: the names most like ``name``, or all of them."""
        return suggestions(name, self.names())


def _checked(component: Any) -> Any:
    """A function that checks its arguments first, or the class, whose own constructor does so from now on."""
    if not inspect.isclass(component):
        return in_range(component)
    if "__init__" in vars(component):
        component.__init__ = in_range(component.__init__)  # type: ignore[method-assign]
    return component


def suggestions(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """The end of an error message: those of ``names`` that are most like ``name``, or ``otherwise``, or all of them."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return otherwise or f"; there are: {', '.join(known)}"


MODELS = Registry("model", "MODELS", "pycls.models")
DATASETS = Registry("data set", "DATASETS", "pycls.data.sets")
HEADS = Registry("head", "HEADS", "pycls.heads")
SIMILARITIES = Registry("similarity", "SIMILARITIES", "pycls.heads")
MARGINS = Registry("margin", "MARGINS", "pycls.heads")
CRITERIA = Registry("criterion", "CRITERIA", "pycls.heads")
AUXILIARIES = Registry("auxiliary loss", "AUXILIARIES", "pycls.heads")
