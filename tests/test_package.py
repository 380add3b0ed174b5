"""What is not Python in pycls is in the distribution, too: what compiles C at the first use needs its source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_data_file_is_in_the_distribution() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    data = next(word.value for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords
                if word.arg == "package_data")  # fmt: skip
    patterns = ast.literal_eval(data)["pycls"]
    found = [set((ROOT / "pycls").glob(pattern)) for pattern in patterns]
    assert all(found), dict(zip(patterns, found, strict=True))
    there = {path for path in (ROOT / "pycls").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")}
    assert there - set().union(*found) == set()
