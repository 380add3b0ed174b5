"""Forks runs that kill themselves just before their n-th change of the disk: each line of input is ``n FOLDER`` and options.

The answer to each is the exit status and how many changes there were. What counts as one: a file opened for writing, a
file synchronised, renamed, linked or removed. A run that is killed by the clock seldom dies between two of these.
"""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(folder) for folder in Path(__file__).parents[:3]]

from running import DIGITS  # type: ignore[import-not-found]  # noqa: E402

RUN = [*DIGITS, "OPTIM.MAX_EPOCH", "3", "OPTIM.EMA_UPDATE_PERIOD", "1", "OPTIM.EMA_ALPHA", "3e-3",
       "TRAIN.CHECKPOINT_STEPS", "6", "TENSORBOARD", "False"]  # fmt: skip
TWO_STAGES = ["OPTIM.MAX_EPOCH", "1", "STAGE2.METHOD", "lws", "STAGE2.OPTIM.MAX_EPOCH", "2", "STAGE2.OPTIM.BASE_LR", "0.5",
              "STAGE2.TRAIN.SAMPLER", "class_balanced"]  # fmt: skip
"""What makes it a run of two stages."""


class Countdown:
    """Counts the changes made through it, and kills the process before the one of number ``last``."""

    def __init__(self, last: int) -> None:
        self.last, self.count = last, 0
        for name in ("replace", "rename", "link", "unlink", "fsync"):
            setattr(os, name, self.counting(getattr(os, name)))
        sys.addaudithook(self.watch)

    def counting(self, function: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            self.change()
            return function(*args, **options)

        return counted

    def watch(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wxa+"):
            self.change()

    def change(self) -> None:
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def run(last: int, folder: str, options: list[str], report: int) -> int:
    """One run, in a forked process."""
    from matplotlib.figure import Figure

    from pycls import cli

    # drawing takes longer than training; the file is written all the same
    Figure.savefig = lambda figure, file, **_: file.write(b"drawn")  # type: ignore[method-assign]
    countdown = Countdown(last)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    code = cli.main([*RUN, *options, "OUT_DIR", folder])
    os.write(report, str(countdown.count).encode())
    return code


def main() -> None:
    """Answers until the input ends."""
    import torch._dynamo  # noqa: F401  (what every optimiser imports)

    import pycls.data.sets.digits
    import pycls.models.lenet
    import pycls.run.train  # noqa: F401

    for line in sys.stdin:
        last, folder, *options = shlex.split(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = run(int(last), folder, options, write)
            finally:
                os._exit(code)
        os.close(write)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, os.read(read, 100).decode() or "0", flush=True)
        os.close(read)


if __name__ == "__main__":
    main()
