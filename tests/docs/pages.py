"""The pages as a reader uses them: fenced blocks, what is to be run, and a folder to run it in."""

import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import forked

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
TIMEOUT_S = 240

FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^```(?P<kind>\w*)(?: title=\"(?P<title>[^\"\n]+)\")?[ ]*\n(?P<text>.*?)^```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: the language after the fence.
        text: its lines.
        line: the number of its first line in the page.
        title: the file it is written to, or None.
        reason: why it is not run, or None.
    """

    kind: str
    text: str
    line: int
    title: str | None = None
    reason: str | None = None

    @property
    def runs(self) -> bool:
        """Whether a test is to run it."""
        return self.kind in ("bash", "console", "python") and self.reason is None and self.title is None


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["kind"], m["text"], text.count("\n", 0, m.start("text")) + 1, m["title"], m["reason"])
        for m in FENCE.finditer(text)
    ]


def prose_of(page: Path) -> str:
    """A page without the sessions that show mistakes."""
    text = page.read_text(encoding="utf-8")
    return FENCE.sub(lambda m: "" if m["kind"] == "console" and "error: " in m["text"] else m[0], text)


def without_installation(command: str) -> str:
    """A command line without a leading ``pip install ... &&``; empty where nothing else is left."""
    return re.sub(r"^pip install (?:-e )?\S+(?:\s*&&\s*|\s*$)", "", command, flags=re.MULTILINE)


def commands_of(console: str) -> list[tuple[str, str]]:
    """Each ``$ command`` of a console block, and the output it shows."""
    commands: list[tuple[str, str]] = []
    for line in console.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], ""))
        else:
            assert commands, f"a console block starts with a command, not with {line!r}"
            commands[-1] = (commands[-1][0], f"{commands[-1][1]}{line}\n")
    return commands


def matches(shown: str, printed: str) -> bool:
    """Whether ``printed`` is what a page shows. ``...`` is anything: a line by itself, any lines. Blank lines do not count."""
    pattern = ""
    for line in _lines(shown):
        pattern += r"(?:[^\n]*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", r"[^\n]*") + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


class Workspace:
    """A folder that looks like a fresh clone to a reader, in which runs stay apart from the repository.

    Args:
        folder: an empty folder.
        fresh: whether each command starts an interpreter of its own; otherwise it is forked (forked.py).
    """

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self.folder = folder
        for name in ("tools", "configs", "examples"):
            (folder / name).symlink_to(ROOT / name)
        programs = folder / ".bin"
        programs.mkdir()
        for name, module in (("python", ""), ("torchrun", "-m torch.distributed.run ")):
            program = programs / name
            command = shlex.join([*([] if fresh else forked.in_shell()), sys.executable])
            program.write_text(f'#!/bin/sh\nexec {command} {module}"$@"\n')
            program.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # what `pip install -e .` does
            "COLUMNS": "100",
            "OMP_WAIT_POLICY": "PASSIVE",  # a machine that is busy with other tests has no cycles to spin away
        }

    def write(self, name: str, text: str) -> None:
        """A file that a page shows."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def run(self, *command: str) -> tuple[int, str]:
        """Exit code and output, both streams in one, of a command. It and what it has started end with the time."""
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, output

    def run_block(self, block: Block) -> None:
        """Runs a block and checks that it does what the page says."""
        if block.kind == "python":
            self._succeed(block, str(self.folder / ".bin/python"), "-c", block.text)
        elif block.kind == "bash":
            script = without_installation(block.text)
            if script.strip():
                self._succeed(block, "bash", "-euo", "pipefail", "-c", script)
        else:
            for command, shown in commands_of(block.text):
                self._show(block, command, shown)

    def _succeed(self, block: Block, *command: str) -> None:
        code, printed = self.run(*command)
        assert code == 0, f"line {block.line}: exit code {code}\n{printed}"

    def _show(self, block: Block, command: str, shown: str) -> None:
        code, printed = self.run("bash", "-c", command)
        wanted = 2 if shown.startswith("error: ") else 0
        assert code == wanted, f"line {block.line}: {command}\nexit code {code}, not {wanted}\n{printed}"
        assert matches(shown, printed), f"line {block.line}: {command}\n--- shown\n{shown}\n--- printed\n{printed}"
