"""C compiled on the machine: kept for the next time, and never a reason to fail."""

from pathlib import Path

import pytest

from pycls.runtime import native

TWICE = "int twice(int x) { return 2 * x; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if native._compiler() is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv("PYCLS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "twice.c").write_text(TWICE)
    return tmp_path / "twice.c"


def test_it_is_compiled_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library(source).twice(21) == 42
    (made,) = (tmp_path / "cache").rglob("twice-*.so")
    monkeypatch.setattr(native, "_runs", lambda command: pytest.fail("it was compiled already"))
    assert native.library(source).twice(4) == 8
    assert made.exists()


def test_without_a_place_to_keep_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No home directory, as some containers and batch systems have it."""
    for variable in ("PYCLS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    found = native.compiled(source)
    assert found is not None and found.twice(3) == 6


@pytest.mark.parametrize("text", ["no C at all", "int twice(int x) { return nobody(x); }\nint nobody(int x);\n#error"])
def test_what_cannot_be_compiled_is_done_without(source: Path, text: str) -> None:
    source.write_text(text)
    assert native.compiled(source) is None
    with pytest.raises(native.Unfit, match="compiled"):
        native.library(source)


def test_without_a_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.compiled(source) is None
    with pytest.raises(native.Unfit, match="no C compiler"):
        native.library(source)
