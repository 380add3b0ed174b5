"""A polite request to stop: a flag that the loop looks at between steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask for a stop, the weightier last: SIGUSR1 and SIGUSR2 are schedulers' requests to stop and queue again."""

HANDLED = (*REQUESTS, signal.SIGHUP)
"""The same and SIGHUP, which counts as SIGTERM: a hang-up is no other request."""

_ON_REQUEST = 128
"""A process that a signal ended has this and the signal's number as its exit code."""


def exit_code_of(reason: int) -> int:
    """143 for SIGTERM, 130 for SIGINT, 138 for SIGUSR1, 140 for SIGUSR2; ``reason`` as :class:`StopSignal` gives it."""
    return _ON_REQUEST + REQUESTS[reason - 1]


STOPPED = tuple(exit_code_of(reason) for reason in range(1, len(REQUESTS) + 1))
"""The exit codes of a clean stop on request."""

QUEUE_AGAIN = (_ON_REQUEST + signal.SIGUSR1, _ON_REQUEST + signal.SIGUSR2)
"""Those of a stop after which a job is to queue again."""


class StopSignal:
    """While in force, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and the first SIGINT are noted; a second SIGINT is a
    KeyboardInterrupt.

    Use as a context manager around the loop. In a run of several processes some of them only may be told;
    :func:`pycls.runtime.distributed.largest` of ``reason`` is the answer for all. Outside the main thread, where Python
    allows no handlers, nothing is noted.

    Attributes:
        reason: 0 for no request, else the place, from 1, of the weightiest one in :data:`REQUESTS`.
    """

    def __init__(self) -> None:
        self.reason = 0
        self._interrupts = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        request = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        self.reason = max(self.reason, 1 + REQUESTS.index(request))
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
