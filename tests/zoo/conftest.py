"""A zoo of this machine: a server with weights on it, entries that point there, and a cache of one's own."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from web import Site, serve

from pycls.runtime import download
from pycls.zoo import catalogue

sys.path.insert(0, str(Path(__file__).parent))  # zoo_makers.py

SIDE = 32
COMMON = {"source": "https://example.org", "licence": "MIT", "data": "noise", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
          "interpolation": "bilinear", "crop": SIDE, "resize": 40, "top1_err": 99.0, "top5_err": 95.0}  # fmt: skip


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "BACKOFF_S", 0.001)
    return tmp_path / "cache" / "weights"


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``publish({name: facts})``: the zoo consists of these entries."""
    def publish(own: dict[str, dict[str, Any]]) -> None:
        rows = [{"name": name, "architecture": name.partition("@")[0], "params": 1, **facts} for name, facts in own.items()]
        (tmp_path / "zoo.json").write_text(json.dumps({**COMMON, "entries": rows}))
        monkeypatch.setattr(catalogue, "FILES", (str(tmp_path / "zoo.json"),))
        catalogue.entries.cache_clear()

    yield publish
    monkeypatch.undo()
    catalogue.entries.cache_clear()
