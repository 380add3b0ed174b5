"""The user's modules (``IMPORTS:``): found beside the YAML, on ``sys.path`` or in the current directory."""

import importlib
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pycls.errors import InputError


def import_modules(names: Sequence[str], folder: Path | None = None) -> list[str]:
    """Import modules which register components.

    Args:
        names: each a module (``my_heads``, ``my_package.heads``) or the path of a Python file.
        folder: where the YAML is; a relative path starts there, and a module there goes before others of its name.

    Returns:
        The names by which the same modules are found from anywhere, which is what a dumped config must hold: the
        absolute path for a module that was found beside the YAML or in the current directory.

    Raises:
        InputError: if one is not found, or fails to import; with the reason and its line, in one line.
    """
    return [_import_one(name, folder) for name in names]


def _import_one(name: str, folder: Path | None) -> str:
    path = _find_file(name, folder)
    try:
        if path is None:
            importlib.import_module(name)
            return name
        _import_file(path)
    except InputError:
        raise
    except Exception as error:  # whatever the module does
        raise InputError(f"cannot import {name!r}: {_reason(error)}") from error
    return str(path)


def _find_file(name: str, folder: Path | None) -> Path | None:
    """The file of a module that ``sys.path`` would not, or not everywhere, lead to; None for one that it does."""
    if name.endswith(".py"):
        path = (folder or Path()) / name
        if not path.is_file():
            raise InputError(f"cannot import {name!r}: no such file: {path}")
        return path.resolve()
    beside = _find_in(folder, name) if folder is not None else None
    if beside is None and not _is_on_path(name):
        beside = _find_in(Path(), name)
    return beside


def _find_in(folder: Path, name: str) -> Path | None:
    stem = folder.joinpath(*name.split("."))
    for path in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
        if path.is_file():
            return path.resolve()
    return None


def _is_on_path(name: str) -> bool:
    root = name.partition(".")[0]
    return root in sys.modules or importlib.machinery.PathFinder.find_spec(root) is not None


def _import_file(path: Path) -> None:
    """Import a file under the dotted name that the packages around it give it."""
    root, parts = path.parent, [path.stem]
    if path.stem == "__init__":
        parts = []
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts)
    if str(root) not in sys.path:
        sys.path.append(str(root))  # stays, for what the module imports later
    known = sys.modules.get(name)
    if known is None and len(parts) == 1:
        _execute(name, path)
        return
    module = known or importlib.import_module(name)
    file = getattr(module, "__file__", None)
    if file is None or Path(file).resolve() != path:
        raise InputError(f"cannot import {path}: another module named {name!r} is in use ({file}); rename yours")


def _execute(name: str, path: Path) -> None:
    """Import from this file, whatever else ``sys.path`` may have under the name."""
    package = [str(path.parent)] if path.stem == "__init__" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=package)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _reason(error: Exception) -> str:
    """``ZeroDivisionError: division by zero (heads.py:12)``, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {text}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    user_frames = [frame for frame in frames if frame.filename != __file__]
    place = f" ({user_frames[-1].filename}:{user_frames[-1].lineno})" if user_frames else ""
    return f"{type(error).__name__}: {text}{place}"
