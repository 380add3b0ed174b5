"""Scripts that run as real processes."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAUNCHER = """
import sys
from pycls.errors import InputError, RunError
from pycls.runtime import launch
launch.STOP_GRACE_S = float(sys.argv[3])
launch.FAILURE_GRACE_S = 2.0
try:
    code = launch.launch_local(int(sys.argv[1]), [sys.argv[2]])
    assert "torch" not in sys.modules
    sys.exit(code)
except InputError as error:
    print(f"InputError: {error}", file=sys.stderr)
    sys.exit(2)
except RunError as error:
    print(f"RunError: {error}", file=sys.stderr)
    sys.exit(1)
"""

WORKER = """
import os, signal, sys, time
from pycls.runtime.worker import leave, report_error, start_worker
start_worker()
rank = int(os.environ["RANK"])
"""


@pytest.fixture
def env() -> dict[str, str]:
    """The environment of a test's processes: one thread each, and none of the variables of a launch."""
    unwanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYTHONUNBUFFERED")
    clean = {key: value for key, value in os.environ.items() if key not in unwanted}
    return {**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def python(env: dict[str, str]) -> Callable[[str], "subprocess.Popen[str]"]:
    """Start an interpreter on a piece of code."""

    def start(code: str, *args: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *args],
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.fixture
def launch(tmp_path: Path, python: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., "subprocess.Popen[str]"]:
    """Start a launcher of ``num_procs`` workers that run a piece of code, in which ``rank`` is known."""

    def start(num_procs: int, code: str, stop_grace_s: float = 20.0) -> "subprocess.Popen[str]":
        script = tmp_path / "worker.py"
        script.write_text(WORKER + textwrap.dedent(code))
        return python(LAUNCHER, str(num_procs), str(script), str(stop_grace_s))

    return start
