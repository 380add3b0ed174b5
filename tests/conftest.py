"""What every test's environment has in common."""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # test processes beside each other: one thread each, and none that waits by spinning on the other's core. Set before
    # torch is imported; runs that the tests start set their own number of threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# a shell that starts the tests in the background, or nohup, has them ignore these; the runs that they start would, too
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYCLS_DATA")


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test is not a worker of whatever started the tests, and does not see the user's data."""
    for name in LAUNCH_VARIABLES:
        if name in os.environ:
            monkeypatch.delenv(name)
