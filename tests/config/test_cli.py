"""The command line: what it calls, what it prints, what it returns."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pycls import cli
from pycls.errors import InputError, RunError

Write = Callable[..., str]
TOOL = Path(__file__).parents[2] / "tools" / "run_net.py"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Stand-ins for the modules of the modes that note what they were called with."""
    made: list[tuple[str, Any]] = []
    for mode in ("train", "test", "time", "info", "scale"):
        module = ModuleType(f"pycls.run.{mode}")
        setattr(module, mode, lambda cfg, mode=mode: made.append((mode, cfg)) or 0)
        monkeypatch.setitem(sys.modules, f"pycls.run.{mode}", module)
    return made


def raising(error: BaseException) -> Callable[[Any], None]:
    def run(cfg: Any) -> None:
        raise error

    return run


def test_modes_and_overrides(
    calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch, write: Write, base: str
) -> None:
    path = write(base)
    assert cli.main(["--cfg", path]) == 0
    assert cli.main(["--mode", "test", "--cfg", path, "TRAIN.CROP_PADDING", "-1", "OPTIM.BASE_LR", "1e-2"]) == 0
    assert cli.main([f"--cfg={path}", "--mode=info", "OUT_DIR=x"]) == 0
    assert cli.main(["MODEL.TYPE", "fakenet", "TRAIN.DATASET", "fakeset", "HEAD.NAME=barehead"]) == 0
    assert [mode for mode, _ in calls] == ["train", "test", "info", "train"]
    monkeypatch.setattr(sys.modules["pycls.run.train"], "train", lambda cfg: 143)
    assert cli.main(["--cfg", path]) == 143
    assert (calls[1][1].TRAIN.CROP_PADDING, calls[1][1].OPTIM.BASE_LR, calls[2][1].OUT_DIR) == (-1, 1e-2, "x")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cfg", "none.yaml"], "error: no such file: none.yaml\n"),
        (["--mode", "trian", "--cfg", "a.yaml"], "error: argument --mode: invalid choice: 'trian'"),
        (["--confg", "a.yaml"], "error: "),
        (["--cfg"], "error: argument --cfg: expected one argument (-h shows the usage)\n"),
        (
            ["--cfg", "a.yaml", "OPTIM.BASE_LRR", "1"],
            "error: unknown option OPTIM.BASE_LRR (override); did you mean OPTIM.BASE_LR?\n",
        ),
        (["--cfg", "a.yaml", "OPTIM.BASE_LR", "1", "--mode", "test"], "error: override --mode: flags come before"),
        (["--help-options", "NOPE"], "error: --help-options: there is no section or option NOPE"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    calls: list[tuple[str, Any]],
    write: Write,
    base: str,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    write(base)
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(expected) and captured.err.count("\n") == 1 and captured.out == ""
    assert calls == []


def test_exit_codes_of_a_run(
    calls: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    write: Write,
    base: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(base)
    for error, code, text in [
        (InputError("labels reach 10"), 2, "error: labels reach 10\n"),
        (RunError("disk full"), 1, "error: disk full\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ]:
        monkeypatch.setattr(sys.modules["pycls.run.train"], "train", raising(error))
        assert cli.main(["--cfg", path]) == code
        assert capsys.readouterr().err == text
    monkeypatch.setattr(sys.modules["pycls.run.train"], "train", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["--cfg", path])


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-h"]) == 0 == cli.main(["--help"])
    text = capsys.readouterr().out
    assert "--mode {train,test,time,info" in text and "--help-options" in text and "examples:" in text
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "usage: run_net.py" in captured.err
    assert cli.main(["--help-options"]) == 0
    assert "OPTIM.BASE_LR" in capsys.readouterr().out
    assert cli.main(["--help-options", "FAKENET"]) == 0
    assert "FAKENET.WIDTH" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("['--help']", 0),
        ("[]", 2),
        ("['--help-options']", 0),
        ("['--help-options', 'OPTIM']", 0),
        ("['--mode', 'x']", 2),
        ("['--cfg', 'none.yaml']", 2),
        ("['--cfg', 'syntax.yaml']", 2),
        ("['--cfg', 'a.yaml', 'OPTIM.BASE_LRR', '1']", 2),
        ("['--cfg', 'a.yaml', 'BASE_LR', '1']", 2),
        ("['--cfg', 'a.yaml', 'RESNETT.STEM', '1']", 2),
        ("['--cfg', 'a.yaml', 'RESNET.STEM', '1']", 2),
        ("['--cfg', 'a.yaml', 'TRAIN.BATCH_SIZE', '0']", 2),
        ("['--cfg', 'a.yaml', 'MODEL.TYPE', 'lenett']", 2),
        ("['--cfg', 'a.yaml', 'TRAIN.DATASET', 'x']", 2),
        ("['--cfg', 'a.yaml', 'HEAD.NAME', 'x']", 2),
        ("['--cfg', 'a.yaml', 'HEAD.SIMILARITY.NAME', 'x']", 2),
        ("['--cfg', 'a.yaml', 'NUM_PROCS', '3']", 2),
    ],
)
def test_quick_answers_import_nothing_heavy(write: Write, words: str, code: int) -> None:
    """What is known without a component is said without torch, which alone takes seconds."""
    write("MODEL: {TYPE: lenet5}\nHEAD: {NAME: softmax}\n")
    write("MODEL: {TYPE: lenet5\nHEAD: 3", "syntax.yaml")
    script = f"""
import sys
sys.path.insert(0, {str(TOOL.parents[1])!r})
from pycls.cli import main
code = main({words})
heavy = sorted({{"torch", "torchvision", "numpy", "PIL", "matplotlib"}} & set(sys.modules))
assert not heavy, heavy
assert code == {code}, code
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_tool_runs_from_anywhere(write: Write) -> None:
    write("OPTIM: {X: 1}\n")
    done = subprocess.run([sys.executable, str(TOOL), "--cfg", "a.yaml"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: a.yaml:1: unknown option OPTIM.X\n")
