"""A forked command is what a fresh interpreter's would be, to whoever starts it, and to itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux")
IS_FORKED = "import sys; print('torch' in sys.modules, 'pycls' in sys.modules)"


@pytest.mark.parametrize("code", [
    "import sys, os; print(sys.argv, sys.path[0], os.getcwd(), os.environ['X'], __name__); print('e', file=sys.stderr)",
    "raise SystemExit", "raise SystemExit(3)", "raise SystemExit('no')", "import os; os.kill(os.getpid(), 9)",
    "import os, signal; signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)", "import sys; print(sys.stdin.read())",
    "import atexit, tempfile; atexit.register(print, 'end'); f = tempfile.TemporaryDirectory(); print(len(f.name) > 4)",
    "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
    "import signal; print([signal.getsignal(n) for n in (1, 2, 13, 15)])", "import os; print(os.getpid() == os.getsid(0))",
    "import sys; print(sys.orig_argv, *[(f.encoding, f.line_buffering, f.write_through) for f in (sys.stdout, sys.stderr)])",
])  # fmt: skip
def test_it_ends_and_prints_as_a_fresh_one(code: str, tmp_path: Path) -> None:
    found = []
    for kind in (subprocess.Popen, forked.Process):
        process = kind([sys.executable, "-c", code, "a", "b c"], text=True, cwd=tmp_path, stdin=subprocess.PIPE,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "X": "1"}, start_new_session=True)
        found.append((*process.communicate("in"), process.returncode))  # fmt: skip
    assert found[0] == found[1]


def test_scripts_modules_and_errors(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 3")
    (tmp_path / "script.py").write_text("import beside, sys\nprint(beside.VALUE, __file__, sys.argv)\n1 / 0\n")
    ended = forked.run([sys.executable, tmp_path / "script.py", "x"])
    script = str(tmp_path / "script.py")
    assert ended.returncode == 1 and ended.stdout == f"3 {script} {[script, 'x']}\n" and "ZeroDivisionError" in ended.stderr
    assert forked.run([sys.executable, "-m", "beside"], cwd=tmp_path).returncode == 0


def test_torch_is_there_and_pycls_is_imported_afresh() -> None:
    assert forked.run([sys.executable, "-c", IS_FORKED]).stdout == "True False\n"


@pytest.mark.parametrize("env", [{"OMP_NUM_THREADS": "2"}, {"PYTHONHASHSEED": "7"}, {"PYTHONPATH": "/nowhere"}])
def test_other_variables_of_the_interpreter_need_a_fresh_one(env: dict[str, str]) -> None:
    assert forked.run([sys.executable, "-c", IS_FORKED], env={**os.environ, **env}).stdout == "False False\n"


def test_a_command_of_a_shell(tmp_path: Path) -> None:
    """Its status, what it prints, signals on their way to it, and its end with that of the shell's process."""
    words = [*forked.in_shell(), sys.executable, "-c"]
    ended = subprocess.run([*words, "import sys; print(sys.argv); sys.exit(5)", "a"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (5, "['-c', 'a']\n")
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen([*words, waits], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert pid != process.pid
        process.send_signal(number)
        assert process.wait(timeout=20) == -number
        began = time.monotonic()
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() - began < 20
            time.sleep(0.01)
