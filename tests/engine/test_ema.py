"""The moving average against a float64 loop."""

import pytest
import torch
from torch import nn

from pycls.engine.ema import Ema


@pytest.mark.parametrize("period", [1, 3])
def test_average_is_the_loops(period: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    ema = Ema(model, 0.3, period)
    wanted = {name: value.double() for name, value in model.state_dict().items()}
    for step in range(1, 11):
        model.train()
        model(torch.randn(16, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        ema.update(step)
        if step % period == 0:
            for name, value in model.state_dict().items():
                new = value.double()
                wanted[name] = wanted[name] + 0.3 * (new - wanted[name]) if value.is_floating_point() else new
    found = ema.model.state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)
    assert found["1.num_batches_tracked"] == (10 if period == 1 else 9)
    assert not torch.equal(found["1.running_mean"], model.state_dict()["1.running_mean"])


def test_average_takes_no_part_in_training() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.5, 1)
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    before = model.weight.clone()
    ema.update(1)
    assert torch.equal(model.weight, before) and ema.model.weight.data_ptr() != model.weight.data_ptr()


def test_share_is_pyclss() -> None:
    assert Ema.share(1e-5, 128, 100, 32) == pytest.approx(1e-5 * 128 / 100 * 32)
    assert Ema.share(1.0, 1000, 1, 1) == 1.0
