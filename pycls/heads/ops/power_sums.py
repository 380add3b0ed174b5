"""Elementary symmetric polynomials of many positive numbers and few places, by their power sums.

The same log-ratio as ``polynomials.py``'s, for k up to ``MOST_PLACES``. The k largest numbers are divided out there, which
leaves numbers a in [0, 1], the rest, and the quotients q in (0, 1] of the largest. Of both, Newton's identities give the
polynomials e_1 .. e_k from the power sums ``p_j = sum a^j``:

    i e_i = sum_{j=1..i} (-1)^(j-1) e_{i-j} p_j

a triangular k x k system a sample. In general these identities cancel badly. Here they do not: with all numbers at most 1
the error of e_i is about that of ``max(1, p_1)^i / i!``, and what the result is made of,

    whole_k = 1 + sum_i e_i(rest) e_i(q)    and    whole_{k-1} = e_1(q) + sum_i e_i(rest) e_{i+1}(q),

is at least 1 and holds that size with a factor that only grows with k, as binomial(k, k/2). The systems are solved in
float64; the power sums are a pass over the scores each.
"""

import functools
import math

import torch
from torch import Tensor

MOST_PLACES = 8
"""k at the most: binomial(8, 4) = 70 roundings of a float32 power sum are still below 1e-5."""


class LogRatio(torch.autograd.Function):
    """(scores [N, K], labels [N], k, temperature) -> log-ratio [N], k-th largest other score [N], the largest others."""

    @staticmethod
    def forward(ctx, z: Tensor, labels: Tensor, k: int, temperature: float):  # type: ignore[no-untyped-def, override]
        others = z.scatter(1, labels[:, None], -torch.inf)
        top, places = others.topk(min(k + 1, z.shape[1] - 1), dim=1)
        pivot, places = top[:, k - 1 : k], places[:, :k]
        to_base_2 = math.log2(math.e) / temperature
        small = others.scatter_(1, places, -torch.inf).sub_(pivot).mul_(to_base_2).exp2_()  # [N, K], in [0, 1]
        quotients = (pivot - top[:, :k]).double().mul_(to_base_2).exp2_()
        powers = quotients[:, :, None].expand(-1, -1, k).cumprod(dim=2)  # [N, l, j]: q_l^j
        ratio, by_rest, by_quotients = _log_ratio(_power_sums(small, k), powers.sum(dim=1))
        by_top = torch.bmm(powers, by_quotients[:, :, None])[:, :, 0].neg_().to(z.dtype)
        ctx.save_for_backward(small, places, by_top, by_rest.to(z.dtype))
        ctx.temperature = temperature
        ctx.mark_non_differentiable(top)
        ctx.set_materialize_grads(False)
        return ratio.to(z.dtype).addcdiv_(pivot[:, 0], pivot.new_full((), temperature)), pivot[:, 0].clone(), top

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor | None, grad_kth: Tensor | None, _: Tensor | None):  # type: ignore[no-untyped-def, override]
        small, places, by_top, by_rest = ctx.saved_tensors
        if grad is None:
            result = torch.zeros_like(small)
        else:
            portion = (grad / ctx.temperature)[:, None]
            *lower, highest = (by_rest * portion).split(1, dim=1)
            result = small * highest
            for coefficient in reversed(lower):
                result.add_(coefficient).mul_(small)
            result.scatter_(1, places, by_top * portion)
        if grad_kth is not None:
            result.scatter_add_(1, places[:, -1:], grad_kth[:, None])
        return result, None, None, None


def _power_sums(values: Tensor, k: int) -> Tensor:
    """Sums of the powers 1 to k of each row of ``values`` [N, K]: float64 [N, k]."""
    sums, power = [values.sum(dim=1)], values
    for exponent in range(2, k + 1):
        power = power * values if exponent == 2 else power.mul_(values)
        sums.append(power.sum(dim=1))
    return torch.stack(sums, dim=1).double()


def _log_ratio(rest: Tensor, quotients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``ln whole_k - ln whole_{k-1}`` [N] of both power sums [N, k], float64, and two rows of coefficients [N, k]: the
    derivative by the logarithm of a number a is ``sum_j c_j a^j``."""
    k = rest.shape[1]
    tables = _tables(k, rest.device)
    signed = torch.cat((rest, quotients)) * tables.signs
    padded = torch.nn.functional.pad(signed, (0, 1))
    system = (-padded).index_select(1, tables.below).unflatten(1, (k, k)) + tables.diagonal
    e = torch.linalg.solve_triangular(system, signed[:, :, None], upper=False)
    with_ends = torch.nn.functional.pad(torch.nn.functional.pad(e[:, :, 0], (1, 0), value=1.0), (0, 1))  # 1, e_1 .. e_k, 0
    of_rest, of_quotients = with_ends.chunk(2)
    whole = (of_rest[:, :-1] * of_quotients[:, :-1]).sum(dim=1, keepdim=True)
    whole_below = (of_rest[:, :-1] * of_quotients[:, 1:]).sum(dim=1, keepdim=True)
    by_rest = of_quotients[:, 1:-1] / whole - of_quotients[:, 2:] / whole_below
    by_quotients = of_rest[:, 1:-1] / whole - of_rest[:, :-2] / whole_below
    # implicitly: the system is solved once more, transposed
    by_e = torch.cat((by_rest, by_quotients))[:, :, None]
    adjoint = torch.linalg.solve_triangular(system.mT, by_e, upper=True)
    by_sums = torch.bmm(with_ends.index_select(1, tables.above).unflatten(1, (k, k)), adjoint)[:, :, 0] * tables.factors
    by_rest, by_quotients = by_sums.chunk(2)
    return (whole / whole_below).log_()[:, 0], by_rest, by_quotients


class _Tables:
    """What depends on k alone: signs (-1)^(j-1), factors j (-1)^(j-1), and where the systems' entries stand."""

    def __init__(self, k: int, device: torch.device) -> None:
        one_to_k = torch.arange(1, k + 1, device=device, dtype=torch.float64)
        self.signs = 1 - 2 * ((one_to_k - 1) % 2)
        self.factors = one_to_k * self.signs
        self.diagonal = torch.diag(one_to_k)
        row, column = torch.meshgrid(torch.arange(k, device=device), torch.arange(k, device=device), indexing="ij")
        self.below = torch.where(row > column, row - column - 1, k).flatten()  # k: the padding, 0
        self.above = torch.where(column >= row, column - row, k + 1).flatten()  # k + 1: likewise


@functools.lru_cache(maxsize=32)
def _tables(k: int, device: torch.device) -> _Tables:
    return _Tables(k, device)
