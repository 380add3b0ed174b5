"""Triton's kernels for the elementwise work of a head on a CUDA device: see ``triton_backend.py``.

The arithmetic is that of ``cpu_kernels.c``: of a chunk of c classes and n samples, p [n, c] are the products x . w, and

    score     u_ij = alpha p_ij inverse_j factor_i + classes_j + row_i
    logit     z_ij = transform(u_ij)
    softmax   over z_ij + offset_j without the target, as the largest of them and the sum of exp(. - largest)

A pointer that is None stands for what is not there; each combination is compiled by itself. Everything is float32, whatever
the matrices are; no sum depends on which program is done first.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

IDENTITY = tl.constexpr(0)
EXPONENTIAL = tl.constexpr(1)
STUDENT_T = tl.constexpr(2)


@triton.jit
def _logits(u, scale, kappa, TRANSFORM: tl.constexpr):
    """transform(u)."""
    if TRANSFORM == EXPONENTIAL:
        u = tl.exp(u)
    elif TRANSFORM == STUDENT_T:
        d = 1 - u
        u = scale * (1 - (1 + 2 * kappa) * d / (1 + kappa * d))
    return u


@triton.jit
def _transform_backward(g, logit, u, scale, kappa, TRANSFORM: tl.constexpr, RECOMPUTE: tl.constexpr):
    """Gradient by the scores from that by the logits, and the scores, which are known if they were recomputed."""
    if TRANSFORM == EXPONENTIAL:
        g *= logit
    elif TRANSFORM == STUDENT_T:
        phi = logit / scale
        above = 1 + kappa * (1 + phi)
        g *= scale / (1 + 2 * kappa) * above * above
        if not RECOMPUTE:
            u = (kappa + (1 + kappa) * phi) / (1 + kappa + kappa * phi)
    return g, u


@triton.jit
def _number(value, otherwise):
    """A number on the device, or ``otherwise`` where there is none."""
    if value is not None:
        otherwise = tl.load(value)
    return otherwise


@triton.jit
def _per_class(values, j, there, otherwise):
    """Those of the classes j as a row, or ``otherwise`` where there are none."""
    if values is not None:
        otherwise = tl.load(values + j, mask=there, other=0.0)[None, :]
    return otherwise


@triton.jit
def _per_sample(values, i, known, otherwise):
    """Those of the samples i as a column, or ``otherwise`` where there are none."""
    if values is not None:
        otherwise = tl.load(values + i, mask=known, other=0.0)[:, None]
    return otherwise


@triton.jit
def _row_square(row, width, BLOCK: tl.constexpr):
    """|v|^2 of the vector at ``row``."""
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        k = start + tl.arange(0, BLOCK)
        v = tl.load(row + k, mask=k < width, other=0.0).to(tl.float32)
        sums += v * v
    return tl.sum(sums, axis=0)


@triton.jit
def squares(rows, added, index, out, width, constant, rate, BLOCK: tl.constexpr):
    """out [n] = constant + rate |v|^2 + added [n]; of the rows ``index`` int64 [n], of the first for -1, if it is given."""
    i = tl.program_id(0).to(tl.int64)
    at = i
    if index is not None:
        at = tl.maximum(tl.load(index + i), 0)
    found = constant + rate * _row_square(rows + at * width, width, BLOCK)
    if added is not None:
        found += tl.load(added + i)
    tl.store(out + i, found)


@triton.jit
def inverse_norms(rows, out, width, least, BLOCK: tl.constexpr):
    """out [n] = 1 / |v|, 0 for a vector that counts as zero."""
    i = tl.program_id(0).to(tl.int64)
    norm = tl.sqrt(_row_square(rows + i * width, width, BLOCK))
    tl.store(out + i, tl.where(norm <= least, 0.0, 1 / norm))  # of what is not a number: not a number


@triton.jit
def combine(out, rows, p, q, r, width, alpha, beta, POWER: tl.constexpr, BLOCK: tl.constexpr):
    """out [n, width] = alpha p out + beta q r^POWER rows."""
    i = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    a, b = alpha, beta * tl.load(q + i)
    if p is not None:
        a *= tl.load(p + i)
    if r is not None:
        once = tl.load(r + i)
        b *= once
        if POWER == 2:
            b *= once
    at = i * width + k
    value = a * tl.load(out + at, mask=k < width) + b * tl.load(rows + at, mask=k < width).to(tl.float32)
    tl.store(out + at, value, mask=k < width)


@triton.jit(do_not_specialize=["n"])
def to_targets(grad, rows, target, by_square, n, width, SAMPLES: tl.constexpr, BLOCK: tl.constexpr):
    """grad [k, width] += 2 by_square rows, at the targets' rows. The first sample of a target adds for all that have it, in
    their order."""
    i = tl.program_id(0).to(tl.int64)
    own = tl.maximum(tl.load(target + i), 0)
    by = tl.zeros([SAMPLES], tl.float32)
    earlier = tl.zeros([SAMPLES], tl.int32)
    for start in range(0, n, SAMPLES):
        j = start + tl.arange(0, SAMPLES)
        same = (tl.maximum(tl.load(target + j, mask=j < n, other=-1), 0) == own) & (j < n)
        by += tl.where(same, tl.load(by_square + j, mask=j < n, other=0.0), 0.0)
        earlier += (same & (j < i)).to(tl.int32)
    if tl.sum(earlier, axis=0) == 0:
        factor = 2 * tl.sum(by, axis=0)
        for first in range(0, width, BLOCK):
            k = first + tl.arange(0, BLOCK)
            at = own * width + k
            v = tl.load(rows + at, mask=k < width, other=0.0).to(tl.float32)
            tl.store(grad + at, tl.load(grad + at, mask=k < width, other=0.0) + factor * v, mask=k < width)


@triton.jit(do_not_specialize=["low"])
def forward(
    z, target, row, factor, inverse, classes, offset, scale, score, top, sum_exp, logsumexp, max_other,
    c, stride, low, alpha, kappa, TRANSFORM: tl.constexpr, KEPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row a program. z [n, c]: products in, logits out if they are KEPT. score [n]: u of the target, where it is among
    these classes. top, sum_exp and logsumexp [n] of the softmax; max_other [n], the largest
    logit, without offset, but the target's.
    """
    i = tl.program_id(0).to(tl.int64)
    place = -1
    if target is not None:
        place = tl.load(target + i) - low
    own_row, own_factor, size = 0.0, alpha, _number(scale, 1.0)
    if row is not None:
        own_row = tl.load(row + i)
    if factor is not None:
        own_factor *= tl.load(factor + i)
    own = tl.zeros([BLOCK], tl.float32)
    share = tl.zeros([BLOCK], tl.float32)
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    bare = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, c, BLOCK):
        j = start + tl.arange(0, BLOCK)
        here = j < c
        u = own_factor * tl.load(z + i * stride + j, mask=here, other=0.0)
        if inverse is not None:
            u *= tl.load(inverse + j, mask=here, other=0.0)
        if classes is not None:
            u += tl.load(classes + j, mask=here, other=0.0)
        u += own_row
        if score is not None:
            own += tl.where(here & (j == place), u, 0.0)
        logit = _logits(u, size, kappa, TRANSFORM)
        if KEPT:
            tl.store(z + i * stride + j, logit, mask=here)
        if top is not None:
            logit = tl.where(here & (j != place), logit, float("-inf"))
            if offset is not None:
                if max_other is not None:
                    bare = tl.maximum(bare, logit)
                logit += tl.load(offset + j, mask=here, other=0.0)
            # each lane has a softmax of its own: nothing has to be exchanged in the loop
            new = tl.maximum(most, logit)
            shift = tl.where(new == float("-inf"), 0.0, new)
            share = share * tl.exp(most - shift) + tl.exp(logit - shift)
            most = new
    if score is not None:
        tl.store(score + i, tl.sum(own, axis=0), mask=(place >= 0) & (place < c))
    if top is not None:
        best = tl.max(most, axis=0)
        shift = tl.where(best == float("-inf"), 0.0, best)  # the target may be the only one
        sums = tl.sum(share * tl.exp(most - shift), axis=0)
        tl.store(top + i, best)
        tl.store(sum_exp + i, sums)
        tl.store(logsumexp + i, best + tl.log(sums))
        if max_other is not None:
            if offset is not None:
                best = tl.max(bare, axis=0)
            tl.store(max_other + i, best)


@triton.jit(do_not_specialize=["n", "low", "steps"])
def backward(
    z, grad, target, row, factor, inverse, classes, offset, weights, scale, top, sum_exp, by_others, by_total, by_score,
    along_row, along_column, by_scale, n, c, stride, wide, low, alpha, kappa, steps,
    TRANSFORM: tl.constexpr, RECOMPUTE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """COLUMNS classes of ``steps`` times ROWS samples a program.

    z [n, c]: the logits, or the products to RECOMPUTE them from. grad [n, c], rows ``wide`` apart: the gradient by the
    products over alpha, in the products' type. along_row [blocks of classes, n], along_column [blocks of samples, c] and
    by_scale [blocks of classes, n]: each program's sums of the gradient by the scores, for cosines times the score, and
    of the gradient times the logit. The rest as in cpu_kernels.c.
    """
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = j < c
    size = _number(scale, 1.0)
    per_class, added = _per_class(inverse, j, there, 1.0), _per_class(classes, j, there, 0.0)
    shift, weight = _per_class(offset, j, there, 0.0), _per_class(weights, j, there, 0.0)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(steps):
        i = (tl.program_id(1) * steps + step) * ROWS + tl.arange(0, ROWS)
        known = i < n
        here = known[:, None] & there[None, :]
        at = i.to(tl.int64)[:, None]
        place = (tl.load(target + i, mask=known, other=-1) - low)[:, None]
        per_row, own = _per_sample(factor, i, known, 1.0), _per_sample(row, i, known, 0.0)
        logit = tl.load(z + at * stride + j[None, :], mask=here, other=0.0)
        u = logit
        if RECOMPUTE:
            u = alpha * per_row * logit * per_class + added + own
            logit = _logits(u, size, kappa, TRANSFORM)
        portion = (tl.load(by_others + i, mask=known, other=0.0) / tl.load(sum_exp + i, mask=known, other=1.0))[:, None]
        g = portion * tl.exp(logit + shift - _per_sample(top, i, known, 0.0))
        g = tl.where(j[None, :] == place, 0.0, g)
        if by_total is not None:
            g += _per_sample(by_total, i, known, 0.0) * weight
        g = tl.where(here, g, 0.0)
        if by_scale is not None:
            tl.store(by_scale + tl.program_id(0) * n + i, tl.sum(g * logit, axis=1), mask=known)
        g, u = _transform_backward(g, logit, u, size, kappa, TRANSFORM, RECOMPUTE)
        if by_score is not None:
            g += tl.where(here & (j[None, :] == place), _per_sample(by_score, i, known, 0.0), 0.0)
        if inverse is not None:
            v = g * u
            g = g * per_class * per_row
            rounded = g.to(grad.dtype.element_ty)
        else:
            rounded = g.to(grad.dtype.element_ty)
            v = rounded.to(tl.float32)  # what is summed is what is multiplied: x - w is a difference of the two
        tl.store(grad + at * wide + j[None, :], rounded, mask=here)
        if along_row is not None:
            tl.store(along_row + tl.program_id(0) * n + i, tl.sum(v, axis=1), mask=known)
        if along_column is not None:
            sums += v
    if along_column is not None:
        at_block = tl.program_id(1).to(tl.int64) * c
        tl.store(along_column + at_block + j, tl.sum(sums, axis=0), mask=there)
