"""YAML files and command-line overrides -> values that remember where they were written.

The text is composed into YAML's node graph, not loaded, so that every value keeps its file and line for the messages of
the checks that follow. Nothing here knows what the options are.
"""

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pycls.errors import InputError

KEY = re.compile(r"[A-Za-z_][\w.\-]*\Z")
PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass(frozen=True)
class ConfigValue:
    """A value and the place it was written.

    Attributes:
        value: a scalar, ``list[ConfigValue]`` or ``dict[str, ConfigValue]``.
        where: ``configs/a.yaml:12`` for a line of a file, ``override`` for the command line.
        text: a scalar as written, if it was not quoted; YAML reads ``1e-3`` and ``on`` otherwise than people do.
        alias: the option's name as written, if it has another name here (:mod:`pycls.config.aliases`).
    """

    value: Any
    where: str
    text: str | None = None
    alias: str = ""

    @property
    def is_override(self) -> bool:
        """Whether it comes from the command line, where quotes cannot tell text from numbers."""
        return self.where == "override"

    def plain(self) -> Any:
        """The bare value, all the way down."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        return [item.plain() for item in self.value] if isinstance(self.value, list) else self.value

    def at(self, key: str) -> str:
        """The start of a message about the option ``key`` given here."""
        name = self.shown(key)
        return f"override {name}" if self.is_override else f"{self.where}: {name}"

    def unknown(self, key: str, owner: str = "") -> str:
        """The start of a message about ``key``, given here, that is no option (of ``owner``, such as "the head 'arcface'")."""
        message = f"unknown option {self.shown(key)}" + (f" of {owner}" if owner else "")
        return f"{message} (override)" if self.is_override else f"{self.where}: {message}"

    def shown(self, key: str) -> str:
        """The option ``key`` as the user knows it."""
        return f"{self.alias} (here {key})" if self.alias else key


def read_file(path: str) -> dict[str, ConfigValue]:
    """The sections and options of a YAML file. Raises :class:`InputError` for a file that is none, or holds none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such file: {path}{_similar_file(Path(path))}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a YAML file: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return read_text(text, path)


def read_text(text: str, path: str) -> dict[str, ConfigValue]:
    """The sections and options of a file's text. Raises :class:`InputError` as :func:`read_file` does."""
    root = _compose(text, path)
    if root is None or root.value is None:
        return {}
    if not isinstance(root.value, dict):
        raise InputError(f"{root.where}: expected sections with options (KEY: value), found {_kind(root)}")
    return root.value


def _similar_file(path: Path) -> str:
    folder = path.parent
    stems = [entry.stem for entry in folder.glob(f"*{path.suffix}")] if folder.is_dir() else []
    close = difflib.get_close_matches(path.stem, stems, n=1)
    return f"; did you mean {folder / (close[0] + path.suffix)}?" if close else ""


def _kind(entry: ConfigValue) -> str:
    return "a list" if isinstance(entry.value, list) else repr(entry.value)


def _compose(text: str, path: str) -> ConfigValue | None:
    """The document as a tree; ``path`` "" stands for the command line."""
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return None if node is None else _parse_node(node, loader, path, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise InputError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{path}:{line}: not valid YAML: {error.reason} ({error.character!r})") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not valid YAML: {error}") from None  # an impossible date, say
    finally:
        if loader is not None:
            loader.dispose()


def _parse_node(node: yaml.Node, loader: Any, path: str, above: tuple[yaml.Node, ...]) -> ConfigValue:
    where = f"{path}:{node.start_mark.line + 1}" if path else "override"
    if node in above:
        raise InputError(f"{where}: this value contains itself")
    above = (*above, node)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in PLAIN_TAGS:
        raise InputError(f"{where}: a configuration has no values of the kind {node.tag}")
    if isinstance(node, yaml.MappingNode):
        return ConfigValue(_parse_mapping(node, loader, path, above), where)
    if isinstance(node, yaml.SequenceNode):
        return ConfigValue([_parse_node(item, loader, path, above) for item in node.value], where)
    assert isinstance(node, yaml.ScalarNode), node
    quoted = node.style is not None
    return ConfigValue(loader.construct_object(node), where, None if quoted else node.value)


def _parse_mapping(node: yaml.MappingNode, loader: Any, path: str, above: tuple[yaml.Node, ...]) -> dict[str, ConfigValue]:
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{path}:{line}: a key must be a word")
        if key.value in first and key.value != "<<":
            raise InputError(f"{path}:{line}: {key.value} is given twice, first in line {first[key.value]}")
        first[key.value] = line
    loader.flatten_mapping(node)  # puts what a merge (<<) brings first, so that own keys win
    entries: dict[str, ConfigValue] = {}
    for key, value in node.value:
        item = _parse_node(value, loader, path, above)
        # a section's or an option's line is its key's; that of an item of a list is its own
        where = f"{path}:{key.start_mark.line + 1}" if path else item.where
        entries[key.value] = ConfigValue(item.value, where, item.text)
    return entries


def read_overrides(words: Sequence[str]) -> Iterator[tuple[str, ConfigValue]]:
    """``KEY VALUE`` pairs and ``KEY=VALUE`` words, in order. Raises :class:`InputError` for a word that is neither."""
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            raise InputError(f"override {word}: flags come before the overrides (KEY VALUE ...)")
        key, equals, text = word.partition("=")
        if not KEY.match(key):
            raise InputError(f"override {word}: expected KEY VALUE or KEY=VALUE, such as OPTIM.BASE_LR 0.1")
        if not equals:
            try:
                text = next(rest)
            except StopIteration:
                raise InputError(f"override {key} has no value") from None
        yield key, _read_value(text)


def _read_value(text: str) -> ConfigValue:
    """One word of the command line as YAML reads it, or Python where YAML sees mere text, as in yacs."""
    try:
        entry = _compose(text, "")
    except InputError:
        entry = None
    if entry is None or (isinstance(entry.value, dict) and not text.lstrip().startswith("{")):
        return ConfigValue(text, "override", text)
    if entry.text is None:
        return entry
    value = entry.value
    if isinstance(value, str):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = text
    return _wrap(value, text)


def _wrap(value: Any, text: str | None = None) -> ConfigValue:
    if isinstance(value, list | tuple):
        return ConfigValue([_wrap(item) for item in value], "override")
    if isinstance(value, dict):
        return ConfigValue({str(key): _wrap(item) for key, item in value.items()}, "override")
    return ConfigValue(value, "override", text)


def put(tree: dict[str, ConfigValue], key: str, given: ConfigValue) -> None:
    """Write an override into the tree; a mapping is merged into what is there, anything else takes its place."""
    head, _, tail = key.partition(".")
    there = tree.get(head)
    below = dict(there.value) if there is not None and isinstance(there.value, dict) else {}
    if tail:
        put(below, tail, given)
    elif isinstance(given.value, dict):
        for name, item in given.value.items():
            put(below, name, item)
    else:
        tree[head] = given
        return
    tree[head] = ConfigValue(below, there.where if there is not None else given.where)


def leaves(tree: dict[str, ConfigValue], above: str = "") -> dict[str, ConfigValue]:
    """Dotted key -> value of everything that is not a mapping with something in it."""
    flat: dict[str, ConfigValue] = {}
    for name, item in tree.items():
        if isinstance(item.value, dict) and item.value:
            flat.update(leaves(item.value, f"{above}{name}."))
        else:
            flat[f"{above}{name}"] = item
    return flat
