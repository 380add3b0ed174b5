"""The polite request to stop."""

import os
import signal
import threading

import pytest

from pycls.runtime.signals import StopSignal, exit_code_of


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.getsignal(number)  # a bytecode boundary, at which Python runs the handler


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143), (signal.SIGUSR1, 138),
                         (signal.SIGUSR2, 140)], ids=lambda x: str(x)
)
def test_a_signal_sets_the_flag(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.reason
        send(number)
        assert exit_code_of(stop.reason) == code
    assert signal.getsignal(number) is before


def test_the_second_interrupt_is_not_polite() -> None:
    with StopSignal() as stop:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert exit_code_of(stop.reason) == 143, "the weightier request names the reason"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_an_ignored_hang_up_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            send(signal.SIGHUP)
            assert not stop.reason
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_it_is_harmless() -> None:
    seen: list[int] = []

    def work() -> None:
        with StopSignal() as stop:
            seen.append(stop.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]
