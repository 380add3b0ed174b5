"""Elementary symmetric polynomials for the smooth top-k loss: pycls compared with the algorithms of the paper in one run.

    python benchmarks/esf.py [--k 5] [--classes 1000] [--batch 256] [--tau 0.1] [--scale 1] [--repeats N] [--busy] [--quick]

Repeats the comparison of Berrada, Zisserman and Kumar (ICLR 2018): speed and stability of the summation algorithm in
float32 and in float64, of divide and conquer in log-space with automatic derivatives and with the paper's derivatives, and of
pycls's algorithm. Each computes what the loss needs, ``ln sigma_k - ln sigma_{k-1}`` of ``exp(s_j / (k tau))`` over all classes
except the label's, and its derivatives. The scores are float32 and normal with standard deviation --scale. They are compared
with the log-sum-exp of the same scores, the minimum for a loss over all classes, and with pycls's C kernel, which computes the
whole loss and its derivatives.

The errors are those of float32 results against a float64 reference in log-space that never subtracts: of the ratio,
relative to its own size or to 1 if that is smaller; of the derivatives, the largest of a sample relative to the
sample's largest derivative. Shown are the median and the largest over the samples that are finite, and the share of
samples that are not.
"""

import argparse

import torch
from common import Job, Measured, clock_of, parse, parser, setting, shown_seconds, shown_spread, side_by_side, table
from esf_algorithms import ALGORITHMS, reference
from torch import Tensor

from pycls.heads.ops.topk import topk_losses

LEAST = "log-sum-exp"
COMPILED = "pycls, compiled, the whole loss"
TAUS = (10.0, 1.0, 0.1, 0.01, 0.001)


def _compiled(scores: Tensor, labels: Tensor, k: int) -> Tensor | None:
    """What a head does on a processor: loss and derivatives in one pass. None where there is no compiler."""
    target = scores.detach().gather(1, labels[:, None])[:, 0]
    return topk_losses(scores, target, labels, k, alpha=1.0, tau=1 / k)


def make_inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Scores float32 [N, K] and labels [N]."""
    generator = torch.Generator().manual_seed(0)
    scores = arguments.scale * torch.randn(arguments.batch, arguments.classes, generator=generator)
    return scores, torch.randint(0, arguments.classes, (arguments.batch,), generator=generator)


def speed(scores: Tensor, labels: Tensor, k: int, repeats: int, busy: bool) -> str:
    """The table of times, forward and forward with backward, each beside pycls's."""
    leaf = scores.clone().requires_grad_()
    methods = {**ALGORITHMS, LEAST: lambda s, y, k: torch.logsumexp(s, dim=1)}
    if _compiled(scores, labels, k) is not None:
        methods[COMPILED] = _compiled

    def forward(name: str) -> Job:
        def job() -> None:
            with torch.no_grad():
                methods[name](scores, labels, k)

        return job

    def both(name: str) -> Job:
        def job() -> None:
            leaf.grad = None
            methods[name](leaf, labels, k).sum().backward()

        return job

    columns: list[dict[str, Measured]] = []
    for make in (forward, both):
        beside = {name: "pycls" for name in methods if name != "pycls"}
        columns.append(side_by_side({name: make(name) for name in methods}, beside, repeats, clock_of("cpu", busy)))
    rows = []
    for name in methods:
        cells = []
        for found in columns:
            measured = found[name]
            times = [f"{measured.ratio:.2f}", shown_spread(measured.spread)] if measured.ratios else ["1", ""]
            cells += [shown_seconds(measured.second), *times]
        rows.append([name, *cells])
    return table(["", "forward", "x pycls", "quartiles", "with backward", "x pycls", "quartiles"], rows)


def errors(name: str, scores: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Errors of the ratio and of the derivatives, a sample [N] each; not finite where the result is not."""
    leaf = scores.clone().requires_grad_()
    value = ALGORITHMS[name](leaf, labels, k)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    true_value, true_gradient = reference(scores, labels, k)
    off = (value.detach().double() - true_value).abs() / true_value.abs().clamp(min=1)
    gradient_off = (gradient.double() - true_gradient).abs().amax(dim=1) / true_gradient.abs().amax(dim=1)
    return off, gradient_off


def stability(scores: Tensor, labels: Tensor, k: int, taus: tuple[float, ...]) -> str:
    """The table of errors by tau."""
    rows = []
    for tau in taus:
        for name in ALGORITHMS:
            cells = [cell for error in errors(name, scores / (k * tau), labels, k) for cell in _shown_error(error)]
            rows.append([f"tau {tau:g}: {name}", *cells])
    return table(["", "ratio: median", "largest", "not finite", "derivatives: median", "largest", "not finite"], rows)


def _shown_error(error: Tensor) -> list[str]:
    finite = error[error.isfinite()]
    share = f"{100 * (1 - len(finite) / len(error)):.0f} %"
    return [f"{finite.median():.1e}", f"{finite.max():.1e}", share] if len(finite) else ["-", "-", share]


def main() -> None:
    options = parser("Elementary symmetric polynomials: pycls beside the paper's algorithms.", repeats=15)
    options.add_argument("--k", type=int, default=5, help="places that count as right (5)")
    options.add_argument("--classes", type=int, default=1000, help="classes (1000)")
    options.add_argument("--batch", type=int, default=256, help="samples (256)")
    options.add_argument("--tau", type=float, default=0.1, help="temperature of the timed runs (0.1)")
    options.add_argument("--scale", type=float, default=1.0, help="standard deviation of the scores (1)")
    arguments = parse(options)
    if arguments.quick:
        arguments.classes, arguments.batch = min(arguments.classes, 40), min(arguments.batch, 8)
    if not 1 <= arguments.k < arguments.classes or arguments.batch < 1 or arguments.tau <= 0:
        options.error("--k must be at least 1 and below --classes, --batch at least 1 and --tau positive")
    scores, labels = make_inputs(arguments)
    k, tau = arguments.k, arguments.tau
    print(setting())
    print(f"k {k}, {arguments.classes} classes, batch {arguments.batch}, scores of deviation {arguments.scale:g}; "
          f"{arguments.repeats} rounds\n")  # fmt: skip
    print(f"Speed at tau {tau:g}\n\n{speed(scores / (k * tau), labels, k, arguments.repeats, arguments.busy)}\n")
    taus = tuple(sorted({tau, *TAUS}, reverse=True))
    print(f"Errors\n\n{stability(scores, labels, k, taus)}")


if __name__ == "__main__":
    main()
