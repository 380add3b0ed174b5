"""Matrix products with float32 sums, of float32 operands or of half-precision ones.

In half precision the pass over the prototypes is that of the *rounded* features and prototypes, computed in float32 from
there on: their norms are the rounded vectors' too, so that a cosine is one and no squared distance is below 0 (up to
float32's rounding), and features that arrive in half precision are not rounded at all. What is rounded a second time is the
gradient by the products, before the two products back.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALF, _NOTHING = (torch.bfloat16, torch.float16), nullcontext()


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type in which autocast would multiply features x on CUDA, if it is a half-precision one; None for x's own.

    Elsewhere it is None also under autocast: a processor multiplies in float32 many times as fast. ``torch.compile``, like a
    processor, has the products in float32.
    """
    if not x.is_cuda or x.dtype is torch.float64 or torch.compiler.is_compiling() or not torch.is_autocast_enabled("cuda"):
        return None
    dtype = torch.get_autocast_dtype("cuda")
    return dtype if dtype in HALF else None


def float_products(x: Tensor) -> AbstractContextManager[object]:
    """A context outside of autocast for x's device. To ask first is quicker than to leave what was never entered."""
    kind = "cpu" if x.is_cpu else x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING


def sum_type(x: Tensor) -> torch.dtype:
    """The type of the products of x and of all that follows from them: x's, or float32 of half precision."""
    return torch.float32 if x.dtype in HALF else x.dtype


def product(
    a: Tensor, b: Tensor, out: Tensor | None = None, *, added: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """``alpha a b + beta added`` of a [n, k] and b [k, m], in ``out`` [n, m] (which must not be ``added``) or a new one."""
    if a.dtype not in HALF:
        return torch.mm(a, b, out=out) if added is None else torch.addmm(added, a, b, beta=beta, alpha=alpha, out=out)
    result = _of_halves(a, b, out)
    if added is not None:
        result.mul_(alpha).add_(added, alpha=beta)
    return result


def add_product(out: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> None:
    """``out = beta out + alpha a b``; with beta 0 whatever was in ``out`` is gone."""
    if a.dtype not in HALF:
        out.addmm_(a, b, beta=beta, alpha=alpha)
    elif beta == 0:  # an addmm of half-precision operands onto float32 is not in every version of torch
        torch.mul(_of_halves(a, b, None), alpha, out=out)
    else:
        out.mul_(beta).add_(_of_halves(a, b, None), alpha=alpha)


def _of_halves(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    """a b in float32; where there is no such product, from operands in float32, of which each product is exact."""
    if not a.is_cuda:
        return torch.mm(a.float(), b.float(), out=out)
    multiply: Any = torch.mm  # whose stubs do not know the argument
    return multiply(a, b, out_dtype=torch.float32, out=out)
