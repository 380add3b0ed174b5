"""Algorithms for ``ln sigma_k - ln sigma_{k-1}`` of ``exp(s_j)``, j not the label, which ``esf.py`` compares.

``sigma_i`` is the i-th elementary symmetric polynomial. All but the reference are written from the description in
Berrada, Zisserman, Kumar, "Smooth Loss Functions for Deep Top-k Classification", ICLR 2018, sections 4.2 and 4.3 and
appendix D. Each takes scores [N, K], already divided by the temperature, labels [N] and k, and gives [N], differentiable.
"""

import torch
from torch import Tensor

from pycls.heads.ops.polynomials import log_ratio_of_others

LOG_ZERO = -1e30
"""For ln 0: finite, so that sums and differences of several stay numbers, and so do their gradients."""


def other_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """The scores without the label's, [N, K - 1]."""
    keep = torch.ones_like(scores, dtype=torch.bool).scatter_(1, labels[:, None], False)
    return scores[keep].view(len(scores), -1)


def summation(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """One number after the other, ``sigma_i <- sigma_i + a_j sigma_{i-1}``, in plain numbers, with automatic derivatives."""
    a = other_scores(scores, labels).exp()
    sigma = torch.cat((a.new_ones(len(a), 1), a.new_zeros(len(a), k)), dim=1)
    for column in a.unbind(dim=1):
        sigma = torch.cat((sigma[:, :1], sigma[:, 1:] + column[:, None] * sigma[:, :-1]), dim=1)
    return sigma[:, k].log() - sigma[:, k - 1].log()


def summation_float64(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """The same in float64."""
    return summation(scores.double(), labels, k).to(scores.dtype)


def log_polynomial(x: Tensor, degree: int) -> Tensor:
    """ln of the coefficients 0..degree of ``prod_j (1 + exp(x_j) t)``, [degree + 1, N], by divide and conquer.

    Products of pairs of polynomials, pairs of these, and so on, each sum a log-sum-exp; what is above ``degree`` is cut.
    """
    factors = torch.stack((torch.zeros_like(x), x))  # [coefficients, N, polynomials]
    while factors.shape[2] > 1:
        if factors.shape[2] % 2:
            one = torch.full_like(factors[:, :, :1], LOG_ZERO)
            one[0] = 0
            factors = torch.cat((factors, one), dim=2)
        half = factors.shape[2] // 2
        factors = _log_product(factors[:, :, :half], factors[:, :, half:], degree)
    return factors[:, :, 0]


def _log_product(a: Tensor, b: Tensor, degree: int) -> Tensor:
    """ln of the coefficients of a product, [up to degree + 1, ...], from those of the factors [d + 1, ...]."""
    d = len(a) - 1
    coefficients = []
    for i in range(min(2 * d, degree) + 1):
        low, high = max(0, i - d), min(i, d)
        coefficients.append(torch.logsumexp(a[low : high + 1] + b[i - high : i - low + 1].flip(0), dim=0))
    return torch.stack(coefficients)


def divide_automatic(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Divide and conquer in log-space, with automatic derivatives."""
    sigma = log_polynomial(other_scores(scores, labels), k)
    return sigma[k] - sigma[k - 1]


def divide_custom(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Divide and conquer in log-space, with the paper's derivatives."""
    return _PaperRatio.apply(other_scores(scores, labels), k)


class _PaperRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, k: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        order = int(1 + 0.2 * k)  # of the approximation, the authors' choice
        sigma = log_polynomial(x, min(k + order - 1, x.shape[1]))
        ctx.save_for_backward(x, sigma)
        ctx.k, ctx.order = k, order
        return sigma[k] - sigma[k - 1]

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        x, sigma = ctx.saved_tensors
        slopes = [log_slope(x, sigma, j, ctx.order) - sigma[j, :, None] for j in (ctx.k, ctx.k - 1) if j > 0]
        share = (slopes[0] + x).exp()
        if len(slopes) > 1:
            share = share - (slopes[1] + x).exp()
        return share * grad[:, None], None


def log_slope(x: Tensor, sigma: Tensor, j: int, order: int, threshold: float = 1e-5) -> Tensor:
    """``ln d sigma_j / d a_i`` [N, n] for ``a = exp(x)``, from ``sigma`` [degree + 1, N], ln of the polynomials of a.

    The derivative is ``d_j = sigma_{j-1} - a_i d_{j-1}``, written out ``sigma_{j-1} - a_i sigma_{j-2} + a_i^2 sigma_{j-3} ..``
    with the terms of either sign summed apart, in log-space. Where the two sums nearly cancel it is taken from the other
    end, ``d_j = (sigma_j - d_{j+1}) / a_i``, cut after ``order`` terms.
    """
    columns = sigma[:, :, None]

    def total(terms: list[Tensor]) -> Tensor:
        return torch.logsumexp(torch.stack(terms), dim=0) if terms else torch.full_like(x, LOG_ZERO)

    def difference(plus: Tensor, minus: Tensor) -> Tensor:
        return plus + torch.log1p(-(minus - plus).exp())

    plus = total([columns[j - 1 - i] + i * x for i in range(0, j, 2)])
    minus = total([columns[j - 1 - i] + i * x for i in range(1, j, 2)])
    stable = (plus - minus) / (minus.abs() + 1e-5) >= threshold
    reach = min(order, len(sigma) - j)
    from_above = difference(
        total([columns[j + i] - (i + 1) * x for i in range(0, reach, 2)]),
        total([columns[j + i] - (i + 1) * x for i in range(1, reach, 2)]),
    )
    return torch.where(stable, difference(plus, minus), from_above)


def ours(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """pycls's: the k largest apart, the rest by products of numbers in [0, 1], exact derivatives."""
    return log_ratio_of_others(scores, labels, k, 1.0)[0]


ALGORITHMS = {
    "summation, float32": summation,
    "summation, float64": summation_float64,
    "divide and conquer, automatic derivatives": divide_automatic,
    "divide and conquer, paper's derivatives": divide_custom,
    "pycls": ours,
}


def reference(scores: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ratio [N] and its derivatives by the scores [N, K], in float64 and log-space, where nothing is ever subtracted.

    With the polynomials of the numbers before j and of those after it, those without j are their product: the
    derivative of ``ln sigma_i`` by ``s_j`` is ``a_j sigma_{i-1}(without j) / sigma_i``.
    """
    x = other_scores(scores.detach().double(), labels)
    before, after = _running(x, k), _running(x.flip(1), k).flip(0)
    n = x.shape[1]
    whole = before[n]
    gradient = torch.zeros_like(x)
    for i, sign in ((k, 1.0), (k - 1, -1.0)):
        if i > 0:
            # [n, i, N]: i - 1 of the chosen among those before j and those after it
            pairs = before[:n, :i] + after[1:, :i].flip(1)
            gradient += sign * (torch.logsumexp(pairs, dim=1).t() + x - whole[i, :, None]).exp()
    full = torch.zeros_like(scores, dtype=torch.float64)
    keep = torch.ones_like(full, dtype=torch.bool).scatter_(1, labels[:, None], False)
    full[keep] = gradient.flatten()
    return whole[k] - whole[k - 1], full


def _running(x: Tensor, k: int) -> Tensor:
    """ln of the polynomials 0..k of the first 0, 1, .. n numbers, [n + 1, k + 1, N]."""
    sigma = torch.full((k + 1, len(x)), LOG_ZERO, dtype=x.dtype)
    sigma[0] = 0
    history = [sigma]
    for column in x.unbind(dim=1):
        sigma = torch.cat((sigma[:1], torch.logaddexp(sigma[1:], sigma[:-1] + column)))
        history.append(sigma)
    return torch.stack(history)
