"""A polite request to stop: a flag that the loop looks at between steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """While in force, SIGTERM, SIGHUP and the first SIGINT set a flag; a second SIGINT is a KeyboardInterrupt.

    Use as a context manager around the loop. In a run of several processes the flag may be set in some of them only;
    :func:`pycls.runtime.distributed.agree` gives all of them the same answer. Outside the main thread, where Python
    allows no handlers, the flag is never set.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._interrupts = 0
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What the process ends with after a clean stop: 128 + the signal (143 for SIGTERM, 130 for SIGINT)."""
        return 128 + (signal.SIGTERM if self.signal is None else self.signal)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
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
        if self.signal is None:  # the first one names the reason; to who reads the exit code a hang-up is a SIGTERM
            self.signal = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
