"""Python commands forked from a process that has torch imported, which takes most of a short command's time.

:class:`Process` is a ``subprocess.Popen`` for commands of this interpreter: a real process, with a pid, signals, pipes, a
session and an exit status of its own, that has imported third-party packages already. pycls and the script are imported
afresh. What such a command starts by ``subprocess`` is forked, too. As a program, this file is that process
(``--template``), or a command of a shell that has itself forked (``ADDRESS COMMAND...``). A fresh interpreter runs instead
where the fork would differ: another operating system than Linux, other variables of the interpreter or of OpenMP.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import io
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
PACKAGES = ("torch._dynamo", "torch.utils.tensorboard", "torch.distributed.fsdp", "torch.distributed.tensor", "simplejson",
            "yaml", "yacs.config", "safetensors.torch", "PIL.Image", "matplotlib.figure", "matplotlib.backends.backend_agg",
            "multiprocessing.connection", "concurrent.futures", "tempfile", "zipfile", "tarfile", "http.client")  # fmt: skip
ROOT = Path(__file__).parents[1]
USUAL = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def prctl(option: int, value: int) -> None:
    """Linux's prctl of this process."""
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def of_interpreter(env: dict[str, str]) -> dict[str, str]:
    """The variables that are read when the interpreter or torch starts; without them it is as with those of ``USUAL``."""
    kinds = ("PYTHON", "OMP_", "MKL_", "KMP_", "LC_", "LANG")
    return {**USUAL, **{key: value for key, value in env.items() if key.startswith(kinds)}}


class Process(subprocess.Popen):  # type: ignore[type-arg]
    """As ``subprocess.Popen``; forked where the command is one of this interpreter."""

    def _execute_child(self, *args: Any, **options: Any) -> None:
        """The one place of ``Popen`` that starts something. The file descriptors are -1 where there is no pipe."""
        given = inspect.signature(super()._execute_child).bind(*args, **options).arguments
        pairs = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        words = [os.fsdecode(word) for word in given["args"]] if isinstance(given["args"], (list, tuple)) else []
        files = [usual if given[name] == -1 else given[name]
                 for name, usual in (("p2cread", 0), ("c2pwrite", 1), ("errwrite", 2))]  # fmt: skip
        request = {"argv": words, "cwd": os.fspath(given["cwd"] or os.getcwd()), "session": given["start_new_session"],
                   "env": dict(os.environ if given["env"] is None else given["env"])}  # fmt: skip
        plain = not any(given[name] for name in ("preexec_fn", "pass_fds", "shell", "executable"))
        pid = start(request, files) if plain and words[:1] == [sys.executable] and can_run(words) else None
        if pid is None:
            super()._execute_child(*args, **options)
            return
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(*(given[name] for name in pairs))


def run(command: Sequence[str | Path], timeout: float = 200, **options: Any) -> "subprocess.CompletedProcess[str]":
    """As ``subprocess.run``, with what it prints as text."""
    words = list(map(str, command))
    with Process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            if process.returncode is None:
                process.kill()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def can_run(words: list[str]) -> bool:
    """Whether a command is a script, a module or a piece of code, without options of the interpreter."""
    return sys.platform == "linux" and len(words) > 1 and (words[1] in ("-c", "-m") or not words[1].startswith("-"))


def start(request: dict[str, Any], files: list[int]) -> int | None:
    """The pid of a forked command, a child of this process; None where a fresh interpreter is to run it."""
    if template is not None:
        return template.start(request, files)
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # the command's parent, which dies at once, is a child of the template
    try:
        with ask(address(), {**request, "orphan": True}, files) as asked:
            return int(line(asked)) or None
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def ignored_signals() -> list[int]:
    """What the process that starts a command ignores, the command ignores."""
    return [int(number) for number in HANDLED if signal.getsignal(number) is signal.SIG_IGN]


def ask(where: str, request: dict[str, Any], files: list[int]) -> socket.socket:
    """Sends a command to the template; the answer's first line is its pid, or 0 where a fresh interpreter is to run it."""
    asked = socket.socket(socket.AF_UNIX)
    asked.connect(where)
    message = json.dumps({**request, "ignored": ignored_signals()}).encode()
    socket.send_fds(asked, [len(message).to_bytes(8, "big")], files)
    asked.sendall(message)
    return asked


def line(asked: socket.socket) -> bytes:
    """The next line of the answer, and not a byte more."""
    found = b""
    while not found.endswith(b"\n"):
        byte = asked.recv(1)
        assert byte, "the template is gone"
        found += byte
    return found


def address() -> str:
    """Where this process's template listens; it is started when first needed, and ends with this process."""
    if not listening:
        folder = tempfile.mkdtemp(prefix="forked-")
        process = subprocess.Popen([sys.executable, __file__, "--template", f"{folder}/socket"],
                                   env=of_interpreter(USUAL) | {**os.environ, **USUAL}, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE)  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        listening.append(f"{folder}/socket")
        atexit.register(end, process, folder)
    return listening[0]


def end(process: "subprocess.Popen[bytes]", folder: str) -> None:
    """Ends a template."""
    process.kill()
    process.communicate()
    os.unlink(f"{folder}/socket")
    os.rmdir(folder)


listening: list[str] = []
template: "Template | None" = None  # in the template and in what it has forked


class Template:
    """The process that forks.

    Args:
        where: the path of its socket.
    """

    def __init__(self, where: str) -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for name in PACKAGES:
            with contextlib.suppress(ImportError):  # of the optional ones
                importlib.import_module(name)
        self.variables, self.path = of_interpreter(dict(os.environ)), sys.path[1:]
        self.modules, self.handlers = set(sys.modules), {number: signal.getsignal(number) for number in HANDLED}
        self.logging = list(logging.root.handlers), logging.root.level
        self.streams = sys.stdin, sys.stdout, sys.stderr  # they would close their files with them
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(where)
        self.socket.listen()

    def serve(self) -> NoReturn:
        """Forks commands until it is killed."""
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        while True:
            asked, _ = self.socket.accept()
            with contextlib.suppress(ChildProcessError):  # those that have waited for the command of a shell
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            with asked:
                self.answer(asked)

    def answer(self, asked: socket.socket) -> None:
        """Forks a command, and answers with its pid."""
        size, files, _, _ = socket.recv_fds(asked, 8, 3)
        request = json.loads(asked.makefile("rb").read(int.from_bytes(size, "big")))
        if of_interpreter(request["env"]) != self.variables:
            asked.sendall(b"0\n")
        else:
            parent = os.fork()
            if parent == 0:
                self.parent(asked, request, files)
            if request["orphan"]:
                os.waitpid(parent, 0)
                asked.sendall(b"\n")
        for file in files:
            os.close(file)

    def parent(self, asked: socket.socket, request: dict[str, Any], files: list[int]) -> NoReturn:
        """The command's parent: ends at once, or passes the exit status on, and kills the command if nobody waits for it."""
        child = os.fork()
        if child == 0:
            self.run(request, files)
        if request["orphan"]:
            asked.sendall(str(child).encode())
            os._exit(0)
        for file in (*files, *range(3)):
            os.close(file)
        asked.sendall(f"{child}\n".encode())
        if asked in select.select([asked, os.pidfd_open(child)], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(OSError):
            asked.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
        os._exit(0)

    def start(self, request: dict[str, Any], files: list[int]) -> int | None:
        """As the function of this name, in a forked command: the launcher of pycls forks, which has not used torch."""
        launcher = "pycls.runtime.launch" in sys.modules and len(os.listdir("/proc/self/task")) == 1
        if not launcher or of_interpreter(request["env"]) != self.variables:
            return None
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            self.run({**request, "ignored": ignored_signals()}, files)
        return child

    def run(self, request: dict[str, Any], files: list[int]) -> NoReturn:
        """The command, in the process that has been forked for it."""
        code = 1
        try:
            self.become(request, files)
            code = execute(request["argv"])
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def become(self, request: dict[str, Any], files: list[int]) -> None:
        """Makes this process one as if it had been started for the command."""
        for number, handler in self.handlers.items():
            signal.signal(number, signal.SIG_IGN if number in request["ignored"] else handler)
        if request["session"]:
            os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        for number, file in enumerate([fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3) for file in files]):
            os.dup2(file, number)
        os.closerange(3, 1024)
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            old = getattr(sys, f"__{name}__")
            raw = old.write_through  # PYTHONUNBUFFERED
            binary = open(number, "wb" if number else "rb", 0 if raw else -1, closefd=False)  # noqa: SIM115
            lines = not raw and (name == "stderr" or binary.isatty())
            new = io.TextIOWrapper(binary, old.encoding, old.errors, line_buffering=lines, write_through=raw)
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)
        for name in set(sys.modules) - self.modules:  # of the launcher
            del sys.modules[name]
        logging.root.handlers[:], logging.root.level = self.logging
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]
        sys.modules["numpy"].random.seed()
        words = request["argv"]
        first = os.path.dirname(os.path.realpath(words[1])) if words[1] not in ("-c", "-m") else ""
        sys.orig_argv[:], sys.argv[:], sys.path[:] = words, words[1:], [first, *self.path]


def execute(words: list[str]) -> int:
    """Runs a script, ``-m MODULE`` or ``-c CODE`` as an interpreter does; returns the exit code."""
    main = types.ModuleType("__main__")
    try:
        if words[1] == "-m":
            del sys.argv[0]
            runpy._run_module_as_main(words[2])  # type: ignore[attr-defined]
        elif words[1] == "-c":
            sys.argv[:] = ["-c", *words[3:]]
            sys.modules["__main__"] = main
            exec(compile(words[2], "<string>", "exec"), main.__dict__)
        else:
            main.__file__ = words[1]
            sys.modules["__main__"] = main
            exec(compile(Path(words[1]).read_bytes(), words[1], "exec"), main.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 255
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def in_shell() -> list[str]:
    """What comes before a command of the interpreter in a shell, to have it forked."""
    return [sys.executable, "-I", "-S", __file__, address()]


def run_in_place_of(where: str, words: list[str]) -> int:
    """A command of a shell: the process which the shell sees, and which passes signals on and ends as the command does."""
    request = {"argv": words, "cwd": os.getcwd(), "session": False, "env": dict(os.environ), "orphan": False}
    if not can_run(words):
        os.execv(words[0], words)
    with ask(where, request, [0, 1, 2]) as asked:
        pid = int(line(asked))
        if not pid:
            os.execv(words[0], words)
        come, noted = os.pipe()
        os.set_blocking(noted, False)
        signal.set_wakeup_fd(noted)
        for number in {*HANDLED}.difference(ignored_signals()):
            signal.signal(number, lambda *_: None)
        while asked not in (ready := select.select([asked, come], [], [])[0]):
            for number in os.read(come, 100) if ready else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        code = int(line(asked))
    if code < 0:
        with contextlib.suppress(OSError):  # of SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    if sys.argv[1] == "--template":
        sys.modules["forked"] = sys.modules["__main__"]
        template = Template(sys.argv[2])
        subprocess.Popen = Process  # type: ignore[misc]
        template.serve()
    sys.exit(run_in_place_of(sys.argv[1], sys.argv[2:]))
