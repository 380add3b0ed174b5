"""The top-k SVMs' losses by compiled C beside torch's operations in double precision."""

import math

import pytest
import torch
from harness import relative_error

import pycls
from pycls.heads.ops import topk

pytestmark = pytest.mark.skipif(topk._function() is None, reason="there is no C compiler")


@pytest.mark.parametrize("threshold", [0.0, 1000.0])
@pytest.mark.parametrize("tau", [0.01, 1.0, None])
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_top_k_losses_of_many_classes(k: int, tau: float | None, threshold: float) -> None:
    """Beside torch's operations in double precision; of wide scores, of equal ones, and of a target far above and below."""
    torch.manual_seed(k)
    scores = torch.randn(12, 3001) * torch.tensor([1e-3, 1.0, 30.0]).repeat(4)[:, None]
    scores[3] = 0.5
    labels = torch.randint(3001, (12,))
    target = scores.gather(1, labels[:, None])[:, 0].clone()
    target[4], target[5] = 100.0, -100.0
    kind = pycls.registry.CRITERIA.get("hard_topk" if tau is None else "smooth_topk")
    criterion = kind(k) if tau is None else kind(k, tau, threshold=threshold)
    found = []
    for dtype in (torch.float32, torch.float64):
        z, of_target = scores.to(dtype).requires_grad_(), target.to(dtype).requires_grad_()
        losses = criterion(z, of_target, labels)
        found.append([losses.detach(), *torch.autograd.grad(losses.sum(), [z, of_target])])
    assert type(losses.grad_fn).__name__ != "_TopKBackward", "double precision is torch's"
    for one, other in zip(*found, strict=True):
        hard = tau is None and one.ndim == 2  # of equal scores any may be the k-th
        where = [i for i in range(12) if i != 3 or not hard]
        assert relative_error(one[where], other[where], 1e-6) < 2e-5
    assert found[0][1].gather(1, labels[:, None]).abs().max() == 0


@pytest.mark.parametrize("name", ["smooth_topk", "hard_topk"])
def test_a_score_that_is_no_number_is_seen_in_top_k_losses(name: str) -> None:
    scores = torch.randn(2, 40)
    scores[1, 7] = math.nan
    losses = pycls.registry.CRITERIA.get(name)(1)(scores, torch.zeros(2), torch.tensor([0, 1]))
    assert losses.isnan().tolist() == [False, True]
