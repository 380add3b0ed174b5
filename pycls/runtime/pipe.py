"""A command whose reader has seen enough, as ``| head`` has. Imports no torch."""

import os
import select
import signal
import sys
from collections.abc import Callable

READER_GONE = 128 + signal.SIGPIPE
"""The exit code that a shell gives a tool that ends for this reason: 141."""


def run(main: Callable[[], int]) -> int:
    """The exit code of a command, which is :data:`READER_GONE`, without a word, where its output is no longer read.

    Any other broken pipe stays the error that it is.
    """
    code = 0
    try:
        try:
            code = main()
        except SystemExit as end:  # argparse's, after -h or a mistake
            code = end.code if isinstance(end.code, int) else 0
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BrokenPipeError:
        if not discard_unread():
            raise
        return READER_GONE
    return code


def discard_unread() -> bool:
    """Sends to nowhere what is still written to standard output or error if its reader has gone; whether one has.

    Python flushes both once more when it ends, and would complain.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            place = stream.fileno()
        except (OSError, ValueError):  # a stand-in without a file
            continue
        poll = select.poll()
        poll.register(place, 0)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, place)
            os.close(nowhere)
            gone = True
    return gone
