"""Criteria of one sample: logits [K] and a class -> a scalar, written from the papers."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Options = Mapping[str, Any]


def log_sum_exp(z: Tensor) -> Tensor:
    top = float(z.detach().max())
    return top + torch.log(torch.exp(z - top).sum())


def cross_entropy(z: Tensor, y: int, o: Options) -> Tensor:
    """-log softmax_y, with label smoothing (Szegedy et al. 2016, section 7) and class weights, as torch has them.

    Class weight c_j multiplies class j's term; the division by the batch's weights is :func:`references.evaluate`'s.
    """
    logp = z - log_sum_exp(z)
    share, weights = o.get("label_smoothing", 0.0), o.get("class_weights") or [1.0] * len(z)
    loss = -(1 - share) * weights[y] * logp[y]
    for j in range(len(z)) if share else ():
        loss = loss - share / len(z) * weights[j] * logp[j]
    return loss


def bce(z: Tensor, y: int, o: Options) -> Tensor:
    """Sum over classes of binary cross entropies of a sigmoid each."""
    loss = z.new_zeros(())
    for j in range(len(z)):
        sign = 1.0 if j == y else -1.0
        loss = loss + log_sum_exp(torch.stack([z.new_zeros(()), -sign * z[j]]))
    return loss


def focal(z: Tensor, y: int, o: Options) -> Tensor:
    """-(1 - p_y)^gamma log p_y (Lin et al. 2017, eq. 4), p from the softmax."""
    logp = z[y] - log_sum_exp(z)
    others = [z[j] for j in range(len(z)) if j != y]
    if not others:
        return -logp * 0.0 ** o["gamma"]
    log_miss = log_sum_exp(torch.stack(others)) - log_sum_exp(z)
    return -torch.exp(o["gamma"] * log_miss) * logp


def adjusted(z: Tensor, y: int, o: Options) -> Tensor:
    """Cross entropy of z + tau log pi, pi the training set's class frequencies (Menon et al. 2021, eq. 10)."""
    total = sum(o["class_counts"])
    prior = torch.tensor([math.log(n / total) for n in o["class_counts"]], dtype=z.dtype)
    return cross_entropy(z + o["tau"] * prior, y, {})


def balanced(z: Tensor, y: int, o: Options) -> Tensor:
    """Cross entropy of z + log n_j (balanced meta-softmax, Ren et al. 2020, eq. 4)."""
    counts = torch.tensor([math.log(n) for n in o["class_counts"]], dtype=z.dtype)
    return cross_entropy(z + counts, y, {})


# --- top-k support vector machines (Berrada, Zisserman, Kumar 2018) ---------------------------------------------------


def hard_topk_subsets(z: Tensor, y: int, k: int, alpha: float) -> Tensor:
    """max over k-subsets S of (alpha [y not in S] + mean z_S) - max over those with y of mean z_S (eq. 3)."""
    everything, with_target = [], []
    for subset in itertools.combinations(range(len(z)), k):
        score = sum(z[j] for j in subset) / k
        everything.append(score if y in subset else score + alpha)
        if y in subset:
            with_target.append(score)
    return torch.stack(everything).max() - torch.stack(with_target).max()


def hard_topk(z: Tensor, y: int, o: Options) -> Tensor:
    """max(0, mean of the top k of (s_not_y + alpha) - (sum of the top k - 1 of s_not_y + s_y) / k) (eq. 4).

    With fewer than k other classes the target is in every k-subset, and the loss is 0.
    """
    k, alpha = o["k"], o["alpha"]
    others = sorted((j for j in range(len(z)) if j != y), key=lambda j: -float(z[j].detach()))
    if len(others) < k:
        return z.sum() * 0.0
    without = sum(z[j] for j in others[:k]) / k + alpha
    within = (sum((z[j] for j in others[: k - 1]), start=z.new_zeros(())) + z[y]) / k
    return torch.clamp(without - within, min=0.0)


def smooth_topk_subsets(z: Tensor, y: int, k: int, tau: float, alpha: float) -> Tensor:
    """The smooth loss by its definition (eq. 6): tau (log-sum-exp over all k-subsets - the same over those with y)."""
    everything, with_target = [], []
    for subset in itertools.combinations(range(len(z)), k):
        score = sum(z[j] for j in subset) / (k * tau)
        everything.append(score if y in subset else score + alpha / tau)
        if y in subset:
            with_target.append(score)
    return tau * (log_sum_exp(torch.stack(everything)) - log_sum_exp(torch.stack(with_target)))


def symmetric_polynomials(roots: Tensor, k: int) -> Tensor:
    """sigma_0 .. sigma_k, one root at a time: sigma_i <- sigma_i + root sigma_{i-1}; of positive terms only."""
    sigma = torch.cat([roots.new_ones(1), roots.new_zeros(k)])
    for root in roots:
        sigma = torch.cat([sigma[:1], sigma[1:] + root * sigma[:-1]])
    return sigma


def smooth_topk_polynomials(z: Tensor, y: int, k: int, tau: float, alpha: float) -> Tensor:
    """tau log(1 + e^(alpha / tau) sigma_k(others) / (sigma_{k-1}(others) e^(s_y / (k tau)))) (eq. 9).

    sigma_k and sigma_{k-1} are of degree k and k - 1: dividing every root by e^top divides their quotient by e^top.
    """
    others = torch.cat([z[:y], z[y + 1 :]]) / (k * tau)
    top = float(others.detach().max())
    sigma = symmetric_polynomials(torch.exp(others - top), k)
    assert float(sigma[k].detach()) > 1e-290, "the polynomial underflows: use the definition by subsets"
    ratio = alpha / tau + top + torch.log(sigma[k] / sigma[k - 1]) - z[y] / (k * tau)
    return tau * log_sum_exp(torch.stack([ratio, z.new_zeros(())]))


def smooth_topk(z: Tensor, y: int, o: Options) -> Tensor:
    """The authors' loss: the hard one where s_[k] - s_[k+1] >= k tau ln 1000, else the smooth one."""
    k, tau, alpha = o["k"], o["tau"], o["alpha"]
    if len(z) > k:
        ranked = sorted((float(v) for v in z.detach()), reverse=True)
        if ranked[k - 1] - ranked[k] >= k * tau * math.log(1000):
            return hard_topk(z, y, o)
    if len(z) <= 12:
        return smooth_topk_subsets(z, y, k, tau, alpha) if k <= len(z) else z.sum() * 0.0
    return smooth_topk_polynomials(z, y, k, tau, alpha)
