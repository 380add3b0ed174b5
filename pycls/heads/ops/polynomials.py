"""Elementary symmetric polynomials of many positive numbers, as the smooth top-k loss needs them: stable and exact.

``sigma_i(a)`` is the sum over all i-subsets of the products of their elements, the coefficient of t^i in
``prod_j (1 + a_j t)``. What is wanted is the log-ratio of two of them, ``ln sigma_k - ln sigma_{k-1}``, for
``a_j = exp(s_j)`` with s of any size.

The k largest s are taken apart. Their product dominates sigma_k, however far apart they are, and is divided out by hand.
All others are at most the k-th, so that after division by it they are in [0, 1], and their polynomial needs no logarithm:
it is a product tree of sums and products of numbers >= 0. Nothing is ever subtracted there, nor when the tree is run
backwards; the gradient of the k largest is the smaller of two differences. So all are exact to a few roundings, and nothing
waits for the device. For few places, k <= 8, ``power_sums.py`` has what is left cheaper still.
"""

import math

import torch
from torch import Tensor

from pycls.heads.ops.power_sums import MOST_PLACES, LogRatio

GROUPS = 32
"""Numbers multiplied into polynomials side by side: the columns of a step."""

BLOCK_ELEMENTS = 1 << 22
"""Numbers of a block's history at the most: 16 MB of float32, allocated again for the backward pass."""


def log_ratio_of_others(z: Tensor, labels: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """``ln sigma_k - ln sigma_{k-1}`` of ``exp(z_j / temperature)``, j not the label [N], and the top of these z.

    Args:
        z: scores [N, K], float32 or float64.
        labels: int64 [N]; their own scores are left out, and get no gradient.
        k: 1 <= k < K.
        temperature: > 0.

    Returns:
        The log-ratio [N] and the k-th largest other score [N], both differentiable, and the ``min(k + 1, K - 1)`` largest
        other scores, descending, without gradient.
    """
    ratio, kth, top = (LogRatio if k <= MOST_PLACES else _LogRatio).apply(z, labels, k, temperature)
    return ratio, kth, top


class _LogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, labels: Tensor, k: int, temperature: float):  # type: ignore[no-untyped-def, override]
        others = z.scatter(1, labels[:, None], -torch.inf)
        top, places = others.topk(min(k + 1, z.shape[1] - 1), dim=1)
        pivot, places = top[:, k - 1 : k], places[:, :k]
        small = others.scatter_(1, places, -torch.inf).sub_(pivot).mul_(1 / temperature).exp_()  # [N, K], in [0, 1]
        # C(K, k) must be a number of the type
        wide = math.comb(z.shape[1], k) > 1e30 and z.dtype == torch.float32
        blocks = _blocks(small, k)
        histories = [_histories(block, k, wide) for block in blocks]
        tree = _Tree([history[-1] for history in histories], k)
        large = (top[:, :k] - pivot).div_(-temperature).exp_().to(tree.product.dtype)  # [N, k], in (0, 1]
        with torch.enable_grad():
            rest = tree.product.requires_grad_()
            whole = _times_monic(large, rest, k)
            ratio = (whole[k] / whole[k - 1]).log()
            (by_rest,) = torch.autograd.grad(ratio.sum(), [rest])
        by_top = _gradient_of_large(large, rest.detach(), whole.detach(), k).to(z.dtype)
        kept = histories if len(histories) == 1 else []  # a large one is computed again, block by block
        ctx.save_for_backward(small, places, by_top, *tree.backward(by_rest), *kept)
        ctx.k, ctx.temperature, ctx.wide, ctx.count = k, temperature, wide, len(blocks)
        ctx.mark_non_differentiable(top)
        ctx.set_materialize_grads(False)
        return (ratio.detach() + pivot[:, 0].to(ratio.dtype) / temperature).to(z.dtype), pivot[:, 0].clone(), top

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor | None, grad_kth: Tensor | None, _: Tensor | None):  # type: ignore[no-untyped-def, override]
        small, places, by_top, *saved = ctx.saved_tensors
        result = torch.zeros_like(small) if grad is None else torch.empty_like(small)
        if grad is not None:
            by_groups, kept = saved[: ctx.count], saved[ctx.count :]
            blocks = zip(_blocks(small, ctx.k), _blocks(result, ctx.k), by_groups, strict=True)
            for block, target, by_group in blocks:
                history = kept[0] if kept else _histories(block, ctx.k, ctx.wide)
                _polynomials_backward(block, history, by_group, target)
            result.mul_(small).scatter_(1, places, by_top)
            result.mul_(grad[:, None] / ctx.temperature)
        if grad_kth is not None:
            result.scatter_add_(1, places[:, -1:], grad_kth[:, None])
        return result, None, None, None


def _blocks(small: Tensor, k: int) -> list[Tensor]:
    """Columns of ``small`` in blocks whose history fits; each a multiple of GROUPS wide, but for the last."""
    width = max(GROUPS, BLOCK_ELEMENTS // max(len(small) * (k + 1), 1) // GROUPS * GROUPS)
    return list(small.split(width, dim=1))


def _histories(block: Tensor, k: int, wide: bool) -> Tensor:
    """Truncated products ``prod (1 + a t)`` over the columns c, c + G, c + 2 G, ...: history [S + 1, k + 1, N, G].

    Entry i has the coefficients, from t^0 to t^k, after i factors.
    """
    samples, columns = block.shape
    steps = -(-columns // GROUPS)
    history = block.new_empty(steps + 1, k + 1, samples, GROUPS, dtype=torch.float64 if wide else block.dtype)
    history[:, 0] = 1
    history[0, 1:] = 0
    states, lower, upper = history.unbind(0), history[:, :-1].unbind(0), history[:, 1:].unbind(0)
    for step, factor in enumerate(block.split(GROUPS, dim=1)):
        width = factor.shape[1]
        if width == GROUPS:
            torch.addcmul(upper[step], factor, lower[step], out=upper[step + 1])
        else:
            states[step + 1].copy_(states[step])
            states[step + 1][1:, :, :width].addcmul_(factor, lower[step][:, :, :width])
    return history


def _polynomials_backward(block: Tensor, history: Tensor, by_last: Tensor, target: Tensor) -> None:
    """Gradient by the block's numbers, written to ``target``, from that by the coefficients [k + 1, N, G]."""
    steps = len(history) - 1
    gradients = history.new_empty(history.shape)  # by the coefficients after each factor
    gradients[-1] = by_last
    states, lower, upper = gradients.unbind(0), gradients[:, :-1].unbind(0), gradients[:, 1:].unbind(0)
    gradients[:, -1] = by_last[-1]  # that of t^k passes unchanged
    for step, factor in reversed(list(enumerate(block.split(GROUPS, dim=1)))):
        width = factor.shape[1]
        if width == GROUPS:
            torch.addcmul(lower[step + 1], factor, upper[step + 1], out=lower[step])
        else:
            states[step].copy_(states[step + 1])
            states[step][:-1, :, :width].addcmul_(factor, upper[step + 1][:, :, :width])
    products = (gradients[1:, 1:] * history[:-1, :-1]).sum(dim=1)  # [S, N, G]
    samples = len(block)
    target.copy_(products.transpose(0, 1).reshape(samples, steps * GROUPS)[:, : target.shape[1]])


class _Tree:
    """Product of many polynomials with coefficients [k + 1, N, G] each, two by two, truncated after t^k.

    Attributes:
        product: [k + 1, N].
    """

    def __init__(self, leaves: list[Tensor], k: int) -> None:
        self.k, self.widths = k, [leaf.shape[2] for leaf in leaves]
        self.levels = [torch.cat(leaves, dim=2) if len(leaves) > 1 else leaves[0]]
        while self.levels[-1].shape[2] > 1:
            factors = self.levels[-1]
            half = factors.shape[2] // 2
            a, b = factors[:, :, :half], factors[:, :, half : 2 * half]
            product = b.clone()  # the coefficients of t^0 are 1
            for i in range(1, k + 1):
                product[i:].addcmul_(a[i], b[: k + 1 - i])
            self.levels.append(torch.cat((product, factors[:, :, 2 * half :]), dim=2) if factors.shape[2] % 2 else product)
        self.product = self.levels[-1][:, :, 0].clone()

    def backward(self, gradient: Tensor) -> list[Tensor]:
        """From the gradient by the product to those by each leaf."""
        gradient, k = gradient[:, :, None], self.k
        for factors in reversed(self.levels[:-1]):
            half = factors.shape[2] // 2
            # the gradient by the one factor is the correlation with the other: both at once
            partner = torch.cat((factors[:, :, half : 2 * half], factors[:, :, :half]), dim=2)
            double = gradient[:, :, :half].repeat(1, 1, 2)
            by_other = torch.stack([(double[i:] * partner[: k + 1 - i]).sum(dim=0) for i in range(k + 1)])
            gradient = torch.cat((by_other, gradient[:, :, half:]), dim=2) if factors.shape[2] % 2 else by_other
        return list(gradient.split(self.widths, dim=2))


def _gradient_of_large(large: Tensor, rest: Tensor, whole: Tensor, k: int) -> Tensor:
    """Gradient [N, k] of ``ln sigma_k - ln sigma_{k-1}`` by the logarithms of the k largest numbers a_l = 1 / q_l.

    With W the polynomial without number l, ``whole_i = q_l W_i + W_{i-1}``, it is the difference of the number's shares,
    ``W_{k-1} / whole_k - W_{k-2} / whole_{k-1}``; or, where both are close to 1, of what they leave over.
    """
    without = rest[:, :, None].expand(-1, -1, k)  # [k + 1, N, l]
    own = torch.eye(k, dtype=torch.bool, device=rest.device)
    for j in range(k):
        shifted = torch.cat((torch.zeros_like(without[:1]), without[:-1]))
        without = torch.where(own[j], without, large[:, j : j + 1] * without + shifted)
    upper, lower = whole[k][:, None], whole[k - 1][:, None]
    share = without[k - 1] / upper
    share_below = without[k - 2] / lower if k > 1 else torch.zeros_like(share)
    left_over = large * (without[k - 1] / lower - without[k] / upper)
    return torch.where(share < 0.5, share - share_below, left_over)


def _times_monic(large: Tensor, rest: Tensor, k: int) -> Tensor:
    """``prod_l (q_l + t)`` over l, times ``rest`` [k + 1, N], truncated: the whole polynomial, divided by its largest product.

    With q_l = 1 / a_l of the k largest numbers, ``prod (1 + a_l t) = prod a_l prod (q_l + t)``.
    """
    for column in large.to(rest.dtype).unbind(dim=1):
        shifted = torch.cat((torch.zeros_like(rest[:1]), rest[:-1]))
        rest = column * rest + shifted
    return rest
