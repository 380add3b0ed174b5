"""One sample against the prototypes, written from the papers: logits, and the target's logit with its margin.

Everything here takes one feature vector ``x`` [D] and the parameters as float64 tensors, and returns a tensor built of
plain torch operations, so that autograd of it is the reference gradient. Nothing here is shared with the package, and
nothing is rearranged for speed: distances are sums of squared differences, angles go through ``acos``.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Options = Mapping[str, Any]


def cosines(x: Tensor, weight: Tensor) -> Tensor:
    """cos(x, w_j) of every row: [rows]."""
    return (weight * x).sum(dim=1) / ((x * x).sum().sqrt() * (weight * weight).sum(dim=1).sqrt())


def angle(cos: Tensor) -> Tensor:
    """theta in [0, pi]; a cosine that rounding took past 1 counts as 1."""
    return torch.acos(cos.clamp(-1, 1))


def norm(x: Tensor) -> Tensor:
    """|x|."""
    return (x * x).sum().sqrt()


# --- logits, as at inference ------------------------------------------------------------------------------------------


def linear(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """w_j . x + b_j."""
    z = (p["weight"] * x).sum(dim=1)
    return z + p["bias"] if "bias" in p else z


def scaled_linear(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """f_j (w_j . x + b_j) (Kang et al., "Decoupling", section 4.1 and the authors' code)."""
    return p["factor"] * ((p["weight"] * x).sum(dim=1) + p["bias"])


def fixed_cosine(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """s cos(x, w_j): CosFace eq. 4, ArcFace eq. 2, LDAM's classifier; COCO eq. 6 with alpha for s."""
    return (o["alpha"] if "alpha" in o else o["scale"]) * cosines(x, p["weight"])


def learned_cosine(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """s cos(x, w_j), s learned itself (NormFace eq. 6)."""
    return p["scale"] * cosines(x, p["weight"])


def softplus_scale(raw: Tensor) -> Tensor:
    """s = softplus(s_) + 1 (t-vMF, section 3.3 and the authors' code)."""
    return torch.log(1 + torch.exp(raw)) + 1


def cosloss(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """t-vMF's CosLoss: (softplus(s_) + 1) cos."""
    return softplus_scale(p["scale"]) * cosines(x, p["weight"])


def tvmf(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """phi = (1 + cos) / (1 + kappa (1 - cos)) - 1, times the learned scale (t-vMF eq. 8)."""
    cos = cosines(x, p["weight"])
    phi = (1 + cos) / (1 + o["kappa"] * (1 - cos)) - 1
    return softplus_scale(p["scale"]) * phi


def feature_cosine(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """|x| cos(x, w_j): SphereFace with |w_j| = 1 and no bias (eq. 5)."""
    return norm(x) * cosines(x, p["weight"])


def subcentre_cosine(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """s max over the C centres of a class of cos; rows k C .. k C + C - 1 are class k (sub-centre ArcFace eq. 2)."""
    every = cosines(x, p["weight"])
    return o["scale"] * torch.stack([own.max() for own in every.split(o["num_centers"])])


def rbf(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """s exp(-|x - W_j|^2 / gamma) (RBF-Softmax eq. 5)."""
    return o["scale"] * torch.exp(-((x - p["weight"]) ** 2).sum(dim=1) / o["gamma"])


def gaussian_terms(x: Tensor, p: Parameters, o: Options) -> tuple[Tensor, Tensor]:
    """d_k = (x - mu_k)^T Lambda_k^-1 (x - mu_k) / 2 and log|Lambda_k| of every class, [K] each (L-GM eq. 11, 12)."""
    if o["covariance"] == "diagonal":
        variance = torch.exp(p["log_variance"])
        return ((x - p["weight"]) ** 2 / variance).sum(dim=1) / 2, torch.log(variance).sum(dim=1)
    distance = ((x - p["weight"]) ** 2).sum(dim=1) / 2
    return distance, torch.zeros_like(distance)


def gaussian(x: Tensor, p: Parameters, o: Options) -> Tensor:
    """-d_k - log|Lambda_k| / 2: log of the class's Gaussian, up to a constant (L-GM eq. 5, equal priors)."""
    distance, logdet = gaussian_terms(x, p, o)
    return -distance - logdet / 2


# --- the target's logit with its margin, as in training ---------------------------------------------------------------


def psi(cos: Tensor, m: int) -> Tensor:
    """(-1)^k cos(m theta) - 2k for theta in [k pi/m, (k + 1) pi/m] (L-Softmax eq. 6, SphereFace eq. 7)."""
    theta = angle(cos)
    k = min(int(float(theta.detach()) * m / math.pi), m - 1)
    return (-1) ** k * torch.cos(m * theta) - 2 * k


def annealed_lambda(o: Options, step: int) -> float:
    """lambda = max(lambda_min, base (1 + gamma t)^-power), t the training passes before this one; base 0: none."""
    if o["lambda_base"] == 0:
        return 0.0
    return max(o["lambda_min"], o["lambda_base"] * (1 + o["lambda_gamma"] * step) ** -o["lambda_power"])


def lsoftmax_target(x: Tensor, y: int, p: Parameters, o: Options, step: int) -> Tensor:
    """(lambda |W||x| cos + |W||x| psi) / (1 + lambda) (L-Softmax section 5.1, eq. 11 of its appendix)."""
    w, blend = p["weight"][y], annealed_lambda(o, step)
    cos = cosines(x, w[None])[0]
    return norm(w) * norm(x) * (blend * cos + psi(cos, o["margin"])) / (1 + blend)


def sphereface_target(x: Tensor, y: int, p: Parameters, o: Options, step: int) -> Tensor:
    """As L-Softmax's with |w| = 1 (SphereFace eq. 7 and its appendix G for lambda)."""
    blend = annealed_lambda(o, step)
    cos = cosines(x, p["weight"][y][None])[0]
    return norm(x) * (blend * cos + psi(cos, o["margin"])) / (1 + blend)


def cosface_target(x: Tensor, y: int, p: Parameters, o: Options, step: int) -> Tensor:
    """s (cos - m) (CosFace eq. 4)."""
    return o["scale"] * (cosines(x, p["weight"][y][None])[0] - o["margin"])


def arc(cos: Tensor, m: float, easy: bool = False) -> Tensor:
    """cos(theta + m) up to theta = pi - m, cos - m sin m beyond (ArcFace eq. 3 and the authors' code).

    Easy margin: cos(theta + m) where cos > 0, cos elsewhere.
    """
    if easy:
        return torch.cos(angle(cos) + m) if cos > 0 else cos
    theta = angle(cos)
    return torch.cos(theta + m) if theta <= math.pi - m else cos - m * math.sin(m)


def arcface_target(x: Tensor, y: int, p: Parameters, o: Options, step: int) -> Tensor:
    """s times :func:`arc` of the target's cosine."""
    cos = cosines(x, p["weight"][y][None])[0]
    return o["scale"] * arc(cos, o["margin"], o.get("easy_margin", False))


def subcentre_target(x: Tensor, y: int, p: Parameters, o: Options, step: int) -> Tensor:
    """ArcFace's margin on the nearest of the target's centres (sub-centre ArcFace eq. 2)."""
    cos = subcentre_cosine(x, p, {**o, "scale": 1.0})[y]
    return o["scale"] * arc(cos, o["margin"])


def combined_target(x: Tensor, y: int, p: Parameters, o: Options, step: int) -> Tensor:
    """s (cos(m1 theta + m2) - m3) (ArcFace eq. 4); with m1 = 1 continued past pi - m2 as ArcFace's own."""
    cos = cosines(x, p["weight"][y][None])[0]
    if o["m1"] == 1:
        return o["scale"] * (arc(cos, o["m2"]) - o["m3"])
    reached = o["m1"] * angle(cos) + o["m2"]
    assert float(reached.detach()) <= math.pi, "the paper defines the combined margin up to m1 theta + m2 = pi"
    return o["scale"] * (torch.cos(reached) - o["m3"])


def gaussian_target(x: Tensor, y: int, p: Parameters, o: Options, step: int) -> Tensor:
    """-(1 + alpha) d_y - log|Lambda_y| / 2 (L-GM eq. 17)."""
    distance, logdet = gaussian_terms(x, p, o)
    return -(1 + o["alpha"]) * distance[y] - logdet[y] / 2


def ldam_target(x: Tensor, y: int, p: Parameters, o: Options, step: int) -> Tensor:
    """s (cos - m_y), m_j = C / n_j^(1/4) with the largest at max_margin (LDAM eq. 10 to 13)."""
    shape = [count**-0.25 for count in o["class_counts"]]
    margin = o["max_margin"] * shape[y] / max(shape)
    return o["scale"] * (cosines(x, p["weight"][y][None])[0] - margin)
