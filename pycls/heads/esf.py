"""Elementary symmetric polynomials of many positive numbers, as the smooth top-k loss needs them: stable and exact.

``sigma_i(a)`` is the sum over all i-subsets of the products of their elements, the coefficient of t^i in
``prod_j (1 + a_j t)``. What is wanted is the log-ratio of two of them, ``ln sigma_k - ln sigma_{k-1}``, for
``a_j = exp(s_j)`` with s of any size.

The k largest s are taken apart. Their product dominates sigma_k, however far apart they are, and is divided out by hand.
All others are at most the k-th, so that after division by it they are in [0, 1], and their polynomial needs no logarithm:
it is a product tree of sums and products of numbers >= 0. Nothing is ever subtracted, neither there nor in the gradient,
which is the tree run backwards; so both are exact to a few roundings, and nothing waits for the device.
"""

import math

import torch
from torch import Tensor

GROUPS = 32
"""Numbers multiplied into polynomials side by side: the columns of a step."""

BLOCK_ELEMENTS = 1 << 22
"""Numbers of a block's history at the most: 16 MB of float32, made anew for the backward pass."""


def log_ratio_of_others(z: Tensor, labels: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """``ln sigma_k - ln sigma_{k-1}`` of ``exp(z_j / temperature)``, j not the label [N], and the top of these z.

    Args:
        z: scores [N, K], float32 or float64.
        labels: int64 [N]; their own scores are left out, and get no gradient.
        k: 1 <= k < K.
        temperature: > 0.

    Returns:
        The log-ratio [N], differentiable, and the ``min(k + 1, K - 1)`` largest other scores, descending, without gradient.
    """
    ratio, top = _LogRatio.apply(z, labels, k, temperature)
    return ratio, top


class _LogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, labels: Tensor, k: int, temperature: float):  # type: ignore[no-untyped-def, override]
        others = z.scatter(1, labels[:, None], -torch.inf)
        top, places = others.topk(min(k + 1, z.shape[1] - 1), dim=1)
        pivot = top[:, k - 1 : k]
        others.scatter_(1, places[:, :k], -torch.inf)
        small = others.sub_(pivot).mul_(1 / temperature).exp_()  # [N, K], in [0, 1]
        # C(K, k) must be a number of the type
        wide = math.comb(z.shape[1], k) > 1e30 and z.dtype == torch.float32
        groups = [_polynomials(block, k, wide)[-1] for block in _blocks(small, k)]
        with torch.enable_grad():
            leaves = [g.detach().requires_grad_() for g in groups]
            large = (top[:, :k] - pivot).div_(-temperature).exp_().requires_grad_()  # [N, k], in (0, 1]
            rest = _tree_product(leaves, k)
            whole = _times_monic(large, rest, k)
            ratio = (whole[k] / whole[k - 1]).log()
            gradients = torch.autograd.grad(ratio.sum(), [large, *leaves])
        ctx.save_for_backward(small, places[:, :k], gradients[0] * large.detach(), *gradients[1:])
        ctx.k, ctx.temperature, ctx.wide = k, temperature, wide
        ctx.mark_non_differentiable(top)
        return (ratio.detach() + pivot[:, 0].to(ratio.dtype) / temperature).to(z.dtype), top

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, _: Tensor | None):  # type: ignore[no-untyped-def, override]
        small, places, by_large, *by_groups = ctx.saved_tensors
        result = torch.empty_like(small)
        for block, target, by_group in zip(_blocks(small, ctx.k), _blocks(result, ctx.k), by_groups, strict=True):
            _pull_polynomials(block, _polynomials(block, ctx.k, ctx.wide), by_group, target)
        result.mul_(small)
        # d/ds of exp(-(s - pivot)) is minus itself
        result.scatter_(1, places, -by_large.to(result.dtype))
        return result.mul_(grad[:, None] / ctx.temperature), None, None, None


def _blocks(small: Tensor, k: int) -> list[Tensor]:
    """Columns of ``small`` in blocks whose history fits; each a multiple of GROUPS wide, but for the last."""
    width = max(GROUPS, BLOCK_ELEMENTS // (len(small) * (k + 1)) // GROUPS * GROUPS)
    return list(small.split(width, dim=1))


def _polynomials(block: Tensor, k: int, wide: bool) -> Tensor:
    """Truncated products ``prod (1 + a t)`` over the columns c, c + G, c + 2 G, ...: history [S + 1, k + 1, N, G].

    The last entry of the history is the coefficients, from t^0 to t^k.
    """
    samples, columns = block.shape
    steps = -(-columns // GROUPS)
    dtype = torch.float64 if wide else block.dtype
    history = torch.empty(steps + 1, k + 1, samples, GROUPS, dtype=dtype, device=block.device)
    history[:, 0] = 1
    history[0, 1:] = 0
    for step in range(steps):
        factor = block[:, step * GROUPS : (step + 1) * GROUPS]
        before, after, width = history[step], history[step + 1], factor.shape[1]
        torch.addcmul(before[1:, :, :width], factor, before[:-1, :, :width], out=after[1:, :, :width])
        if width < GROUPS:
            after[1:, :, width:] = before[1:, :, width:]
    return history


def _pull_polynomials(block: Tensor, history: Tensor, by_last: Tensor, target: Tensor) -> None:
    """Gradient by the block's numbers, written to ``target``, from that by the coefficients [k + 1, N, G]."""
    gradient = by_last.clone()
    for step in reversed(range(len(history) - 1)):
        factor = block[:, step * GROUPS : (step + 1) * GROUPS]
        width = factor.shape[1]
        upper = gradient[1:, :, :width]
        target[:, step * GROUPS : step * GROUPS + width] = (upper * history[step, :-1, :, :width]).sum(dim=0)
        gradient[:-1, :, :width] += factor * upper


def _tree_product(leaves: list[Tensor], k: int) -> Tensor:
    """Product of all polynomials in the columns of ``leaves`` [k + 1, N, G], truncated after t^k: [k + 1, N]."""
    factors = torch.cat(leaves, dim=2) if len(leaves) > 1 else leaves[0]
    while factors.shape[2] > 1:
        half = factors.shape[2] // 2
        product = _truncated_product(factors[:, :, :half], factors[:, :, half : 2 * half], k)
        factors = torch.cat((product, factors[:, :, 2 * half :]), dim=2) if factors.shape[2] % 2 else product
    return factors[:, :, 0]


def _truncated_product(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Coefficients 0..k of the product of two polynomials [k + 1, ...]."""
    return torch.stack([(a[: i + 1] * b[: i + 1].flip(0)).sum(dim=0) for i in range(k + 1)])


def _times_monic(large: Tensor, rest: Tensor, k: int) -> Tensor:
    """``prod_l (q_l + t)`` over l, times ``rest`` [k + 1, N], truncated: the whole polynomial, divided by its largest product.

    With q_l = 1 / a_l of the k largest numbers, ``prod (1 + a_l t) = prod a_l prod (q_l + t)``.
    """
    for column in large.to(rest.dtype).unbind(dim=1):
        shifted = torch.cat((torch.zeros_like(rest[:1]), rest[:-1]))
        rest = column * rest + shifted
    return rest
