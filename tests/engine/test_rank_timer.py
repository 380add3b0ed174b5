"""Who is slow, and how often the processes ask each other; tests/e2e has real ones."""

import pytest
import torch

from pycls.runtime import rank_timer
from pycls.runtime.distributed import Ranks


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(rank_timer.time, "perf_counter", lambda: self.now)


def paced(
    monkeypatch: pytest.MonkeyPatch, others: list[tuple[float, float, str]], log_period: int = 10
) -> rank_timer.RankTimer:
    monkeypatch.setattr(rank_timer, "gather_objects", lambda own: [own, *others])
    return rank_timer.RankTimer(torch.nn.Identity(), torch.device("cpu"), Ranks(0, 1 + len(others), 0, 1), log_period)


def test_only_its_own_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    own = paced(monkeypatch, [(0.5, 2.0, "a"), (1.2, 2.0, "b")])
    own.begin_epoch()
    for _ in range(2):
        clock.now += 0.3  # the batch
        own.batch_ready()
        clock.now += 1.5  # the exchange, for which it waits
        own.step_done()
    found = own.read()
    assert found == rank_timer.Spread(pytest.approx(0.3), pytest.approx(0.5), pytest.approx(1.2), 2, "b") and found.is_straggler
    assert own.read() is None, "no step since"


@pytest.mark.parametrize(("step", "period"), [(5.0, 1), (0.6, 1), (0.3, 3), (0.01, 10)])
def test_slow_steps_are_asked_after_each(monkeypatch: pytest.MonkeyPatch, step: float, period: int) -> None:
    Clock(monkeypatch)
    own = paced(monkeypatch, [(0.0, step, "a")])
    assert all(own.must_agree(start, 100) for start in range(1, 12)), "as long as nothing is known"
    own.begin_epoch()
    own.batch_ready()
    own.read()
    asked = [start for start in range(1, 24) if own.must_agree(start, 23)]
    assert asked == sorted({*range(period, 24, period), 10, 20, 23})


def test_a_forward_pass_in_training_counts_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            clock.now += 2.0
            return x

    net = Net()
    monkeypatch.setattr(rank_timer, "gather_objects", lambda own: [own, own])
    own = rank_timer.RankTimer(net, torch.device("cpu"), Ranks(0, 2, 0, 2), 10)
    own.begin_epoch()
    own.batch_ready()
    net(torch.ones(1))
    net.eval()(torch.ones(1))
    found = own.read()
    assert found is not None and found.slowest == pytest.approx(2.0) and not found.is_straggler


def test_one_process_measures_nothing() -> None:
    own = rank_timer.RankTimer(torch.nn.Identity(), torch.device("cpu"), Ranks(), 10)
    own.begin_epoch()
    own.batch_ready()
    assert own.read() is None and own.must_agree(7, 100)
