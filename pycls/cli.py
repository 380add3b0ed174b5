"""The command line: flags, configuration, exit code. Everything heavy is imported after they are checked."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pycls.errors import InputError, RunError
from pycls.runtime import pipe
from pycls.runtime.worker import LAUNCHER_PID, SUBMITTED, is_worker, leave, report_error, start_worker

MODES = ("train", "test", "time", "info", "scale")
EXAMPLES = """\
examples:
  run_net.py --cfg configs/digits/lenet5_softmax.yaml
  run_net.py --cfg configs/digits/lenet5_softmax.yaml OPTIM.BASE_LR 0.05 HEAD.NAME rbf_softmax OUT_DIR runs/rbf
  run_net.py --mode test --cfg runs/rbf/config.yaml
  run_net.py --wait --cfg configs/mnist/lenet5_rbf.yaml LAUNCH.MODE slurm NUM_GPUS 8
  run_net.py --help-options OPTIM
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (-h shows the usage)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run_net.py",
        description="Train, test, time, describe or scale the classifier that a YAML file names.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this text")
    parser.add_argument("--mode", choices=MODES, default="train", help="what to do (default: train)")
    parser.add_argument("--cfg", metavar="FILE", help="the configuration, a YAML file")
    parser.add_argument("--wait", action="store_true", help="LAUNCH.MODE slurm: show the job's log until it ends")
    parser.add_argument(
        "--help-options",
        metavar="SECTION",
        nargs="?",
        const="",
        help="show every option, or those of a section, model, data set or head: OPTIM, RESNET, HEAD, HEAD.cosface",
    )
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        help="options that win over the file's: KEY VALUE or KEY=VALUE, after the flags",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: the run could not go on. 2: what the user gave cannot work. 130, 138, 140, 143: stopped by SIGINT, SIGUSR1,
    SIGUSR2, SIGTERM, and saved.
    The user's errors are one line on stderr; an exception of any other kind is a bug of ours and keeps its traceback.

    Args:
        argv: the words after the program's name; None for those of this process.
    """
    start_worker()
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(words)
    except InputError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        if not is_worker():  # its launcher, or torchrun, speaks for it
            print("interrupted", file=sys.stderr)
        return 130


def console() -> None:
    """The ``pycls`` command; 141 where the reader of its output has gone, as of ``| head``."""
    code = pipe.run(main)
    if code or is_worker():
        leave(code)


def _run(words: list[str]) -> int:
    parser = _parser()
    flags = parser.parse_args(words)
    if flags.help:
        print(parser.format_help())
        return 0
    if flags.help_options is not None:
        from pycls.config import describe

        print(describe(flags.help_options or None))
        return 0
    if flags.cfg is None and not flags.overrides:
        print(f"{parser.format_usage()}\n{EXAMPLES}\n-h shows more", file=sys.stderr)
        return 2
    from pycls.config import load

    cfg = load(flags.cfg, flags.overrides, notify=_notice)
    if flags.mode in ("train", "test", "time") and not is_worker() and SUBMITTED not in os.environ:
        if cfg.LAUNCH.MODE == "torchrun":
            return int(importlib.import_module("pycls.run.setup").become_torchrun(cfg))
        if cfg.LAUNCH.MODE in ("slurm", "submitit_local"):
            return int(importlib.import_module("pycls.run.slurm").submit(cfg, flags.mode, flags.wait, main))
    mode = importlib.import_module(f"pycls.run.{flags.mode}")  # imports torch
    return int(getattr(mode, flags.mode)(cfg))


def _notice(line: str) -> None:
    """To stderr: stdout may be read by a program. A worker's launcher has said it, and of torchrun's the first does."""
    if not is_worker() or (LAUNCHER_PID not in os.environ and os.environ["RANK"] == "0"):
        print(f"notice: {line}", file=sys.stderr)


def _fail(error: Exception, code: int) -> int:
    if not report_error(error):  # else the launcher shows it, once for all workers
        rank = f"[rank {os.environ['RANK']}] " if is_worker() else ""
        print(f"{rank}error: {error}", file=sys.stderr)
    return code
