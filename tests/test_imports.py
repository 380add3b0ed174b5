"""The import rules of docs/architecture.md: who may import whom, and that nothing is global."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): p
           for folder in ("pycls", "tools") for p in sorted((ROOT / folder).rglob("*.py"))}  # fmt: skip

PACKAGES = {
    "errors": set(),
    "class_names": set(),
    "ranges": set(),
    "registry": {"errors", "ranges"},
    "runtime": {"errors", "runtime"},
    "report": {"errors", "runtime", "report"},
    "models": {"errors", "ranges", "registry", "class_names", "heads", "engine", "zoo", "models"},  # for create_model
    "heads": {"errors", "ranges", "registry", "runtime", "heads"},  # runtime compiles its C source
    "data": {"errors", "ranges", "registry", "class_names", "runtime", "data"},
    "engine": {"errors", "runtime", "report", "engine"},
    "zoo": {"errors", "registry", "class_names", "runtime", "engine", "zoo"},
    "config": {"errors", "ranges", "registry", "config"},
    "build": {"errors", "registry", "class_names", "runtime", "models", "heads", "data", "engine", "config", "build"},
    "run": {"", "errors", "registry", "class_names", "runtime", "report", "models", "heads", "data", "engine", "zoo",
            "config", "build", "run"},
    "cli": {"errors", "runtime", "config", "run"},
    "tools": {"cli", "run", "data", "zoo"},
    "": {"heads", "models"},  # pycls itself: the library's few names
}
WITHIN_HEADS = {
    "heads.ops": {"heads.ops"},  # knows no similarity, margin or head
    "heads.parallel": {"heads.ops", "heads.parallel", "heads.head", "heads.parts"},
    "heads.head": {"heads.ops", "heads.labels", "heads.output", "heads.parts", "heads.snapshot"},
    "heads.output": {"heads.ops"},
    "heads.parts": {"heads.ops"},
}
"""What these of the heads may import of the heads when they run; any other module there anything but heads.parallel."""
PAGE = ROOT / "docs" / "architecture.md"
SEE_CONFIG = {"config", "build", "run", "cli"}
LIGHT = {"", "errors", "ranges", "registry", "class_names", "config", "cli", "tools"}
"""Packages that must not import torch: a mistake is reported before that would cost seconds."""


def package(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "tools" else ".".join(parts[1:2])


def imports(tree: ast.AST, module: str, path: Path) -> Iterator[tuple[str, int]]:
    """(imported module, line) of every import, inside functions too; ``importlib.import_module("...")`` as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if name in SOURCES else str(node.module), node.lineno) for name in names)
        elif (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
              and isinstance(node.args[0], ast.Constant)):  # fmt: skip
            yield node.args[0].value, node.lineno


@pytest.mark.parametrize("module", SOURCES)
def test_module_keeps_to_its_package(module: str) -> None:
    path = SOURCES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = package(module)
    assert own in PACKAGES, f"{path}: a new package; say in docs/architecture.md and here what it may import"
    for name, line in imports(tree, module, path):
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        if name.split(".")[0] == "pycls":
            assert package(name) in PACKAGES[own], where
        if name.split(".")[0] == "yacs":
            assert own in SEE_CONFIG, where
        if name.split(".")[0] == "torch" and own in LIGHT:
            raise AssertionError(where)


def part_of_heads(module: str) -> str:
    """``heads.ops`` of ``pycls.heads.ops.loss``."""
    return ".".join(module.split(".")[1:3])


def without_annotations(tree: ast.AST) -> ast.AST:
    """The module without what only its annotations need."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return tree


@pytest.mark.parametrize("module", [module for module in SOURCES if module.startswith("pycls.heads.")])
def test_heads_import_downwards(module: str) -> None:
    path = SOURCES[module]
    allowed = WITHIN_HEADS.get(part_of_heads(module))
    for name, line in imports(without_annotations(ast.parse(path.read_text(encoding="utf-8"))), module, path):
        if name.startswith("pycls.heads"):
            where = f"{path.relative_to(ROOT)}:{line} imports {name}"
            other = part_of_heads(name)
            assert other != "heads.parallel" if allowed is None else other in allowed, where


@pytest.mark.parametrize("module", SOURCES)
def test_no_configuration_is_global(module: str) -> None:
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global | ast.Nonlocal), f"{module}:{node.lineno}: {ast.unparse(node)}"
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            names = {n.id.lower() for n in ast.walk(target) if isinstance(n, ast.Name)}
            assert names.isdisjoint({"cfg", "_c", "_cfg", "config"}), f"{module}:{node.lineno}"


def test_nothing_below_the_composition_root_takes_a_configuration() -> None:
    for module, path in SOURCES.items():
        if package(module) in SEE_CONFIG:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                assert node.arg not in ("cfg", "config"), f"{path}:{node.lineno}: an argument {node.arg}"


def test_the_rules_are_those_of_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in PACKAGES:
        assert name in page, f"docs/architecture.md does not know the package {name}"
