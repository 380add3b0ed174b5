"""The algorithms that ``benchmarks/esf.py`` compares are right, and its reference is exact."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from esf import errors
from esf_algorithms import ALGORITHMS, log_polynomial, reference
from torch import Tensor


def scores(n: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    values = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return values.to(dtype), torch.randint(0, classes, (n,), generator=generator)


def sigma(numbers: list[Fraction], i: int) -> Fraction:
    """The definition: the sum over all subsets of i numbers of their products."""
    return sum((math.prod(subset, start=Fraction(1)) for subset in itertools.combinations(numbers, i)), Fraction(0))


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_reference_is_the_definition(k: int) -> None:
    z, labels = scores(2, 9)
    value, gradient = reference(z, labels, k)
    for n in range(2):
        numbers = [Fraction(math.exp(float(s))) for j, s in enumerate(z[n]) if j != labels[n]]
        upper, lower = sigma(numbers, k), sigma(numbers, k - 1)
        assert float(value[n]) == pytest.approx(math.log(upper / lower), abs=1e-12)
        assert gradient[n, labels[n]] == 0
        classes = [j for j in range(9) if j != labels[n]]
        for place, j in enumerate(classes):
            rest = numbers[:place] + numbers[place + 1 :]
            slope = numbers[place] * sigma(rest, k - 1) / upper
            if k > 1:
                slope -= numbers[place] * sigma(rest, k - 2) / lower
            assert float(gradient[n, j]) == pytest.approx(float(slope), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(("classes", "k"), [(2, 1), (7, 3), (6, 5), (50, 5)])
def test_algorithms_agree_with_the_reference(name: str, classes: int, k: int) -> None:
    z, labels = scores(4, classes)
    leaf = z.clone().requires_grad_()
    value = ALGORITHMS[name](leaf, labels, k)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    true_value, true_gradient = reference(z, labels, k)
    torch.testing.assert_close(value.detach(), true_value, rtol=1e-10, atol=1e-10)
    # the paper's derivatives are an approximation where two sums agree to 1e-5
    tolerance = 1e-4 if "paper" in name else 1e-9
    torch.testing.assert_close(gradient, true_gradient, rtol=tolerance, atol=tolerance)


def test_polynomial_of_equal_numbers_is_binomial() -> None:
    coefficients = log_polynomial(torch.zeros(1, 11, dtype=torch.float64), 5)[:, 0].exp()
    assert coefficients.tolist() == pytest.approx([math.comb(11, i) for i in range(6)])


def test_errors_tell_overflow() -> None:
    z, labels = scores(3, 30, torch.float32)
    small, _ = errors("summation, float32", z, labels, 5)
    assert small.max() < 1e-5
    overflown, _ = errors("summation, float32", z * 200, labels, 5)
    assert not overflown.isfinite().any()
    stable, slopes = errors("pycls", z * 200, labels, 5)
    assert stable.max() < 1e-5 and slopes.max() < 1e-4
