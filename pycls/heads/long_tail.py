"""Heads for long-tailed training sets: LDAM, logit adjustment, balanced softmax. They know the classes' counts."""

from typing import Annotated

import torch
from torch import Tensor

from pycls.heads.cosine import Cosine
from pycls.heads.cross_entropy import ClassBalanced, CrossEntropy, as_counts, check_counts
from pycls.heads.head import Head
from pycls.heads.linear import Linear
from pycls.heads.parts import Margin, Target
from pycls.ranges import NOT_NEGATIVE, PART
from pycls.registry import CRITERIA, HEADS, MARGINS

ABSENT = -1000.0
"""The logarithm of a share of 0: far enough below any other that ``exp`` of the difference is 0, and finite."""


@MARGINS.register("ldam")
class LabelDistributionMargin(Margin):
    """``cos - m_y`` with ``m_j = C n_j^(-1/4)``, the largest being max_margin (Cao et al., NeurIPS 2019, equation 13).

    A class without training samples has the rarest one's margin, and no say in those of the others.

    Args:
        class_counts: training samples of each class [K]; 0 for a class without any.
        max_margin: the rarest class's margin, >= 0.

    Raises:
        ValueError: if max_margin or a count is negative.
    """

    name = "ldam"
    domain = "cosine"
    margins: Tensor

    def __init__(self, class_counts: Tensor, max_margin: Annotated[float, NOT_NEGATIVE] = 0.5) -> None:
        super().__init__()
        counts = as_counts(class_counts)
        rarest = counts[counts > 0].min()
        self.max_margin = max_margin
        self.register_buffer("margins", max_margin * (rarest / torch.where(counts > 0, counts, rarest)) ** 0.25)

    def check(self, num_classes: int) -> None:
        """One count a class."""
        check_counts(self.margins, num_classes)

    def class_priors(self) -> list[str]:
        """The margins."""
        return ["margins"]

    def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """cos - m_y."""
        return value - self.margins[labels].to(value.dtype), torch.ones_like(value)

    def extra_repr(self) -> str:
        """max_margin."""
        return f"max_margin={self.max_margin}"


@CRITERIA.register("logit_adjustment")
class LogitAdjustment(CrossEntropy):
    """Cross entropy of ``z + tau log pi`` in training (Menon et al., ICLR 2021, equation 10), of z in evaluation.

    Post hoc (equation 9) it is the other way round: plain in training, and ``z - tau log pi`` are the logits in evaluation.

    A class without training samples has pi 0: it is in no softmax with the adjustment, and in evaluation it is never
    predicted; the logit that says so is 1000 lower. A sample of it, which would cost infinitely much, does not count in the
    loss.

    Args:
        class_counts: training samples of each class [K]; pi are their shares. 0 for a class without any.
        tau: strength; 1 is the balanced softmax.
        post_hoc: adjust in evaluation instead of in training.
    """

    name = "logit_adjustment"
    log_prior: Tensor

    def __init__(self, class_counts: Tensor, tau: Annotated[float, NOT_NEGATIVE] = 1.0, post_hoc: bool = False) -> None:
        super().__init__()
        counts = as_counts(class_counts)
        self.tau, self.post_hoc = tau, post_hoc
        self.register_buffer("log_prior", (counts / counts.sum()).log().clamp(min=ABSENT))
        self._some_absent = bool((counts == 0).any())  # in training: to look at the buffer would wait for a GPU

    @property
    def optional_state(self) -> tuple[str, ...]:
        """Without an adjustment the prior says no more than which classes are absent; older weights do not have it."""
        return () if self.tau else ("log_prior",)

    def check(self, num_classes: int) -> None:
        """One count a class."""
        check_counts(self.log_prior, num_classes)

    def class_weights(self) -> Tensor | None:
        """0 for a class without training samples, 1 for the others; None in training where there is none."""
        if self.training and not self._some_absent:
            return None
        return (self.log_prior > ABSENT).to(self.log_prior.dtype)

    def smoothed_over(self, classes: int) -> int | Tensor:
        """Those that have training samples."""
        return (self.log_prior > ABSENT).sum()

    def class_priors(self) -> list[str]:
        """log pi."""
        return [*super().class_priors(), "log_prior"]

    def offset(self) -> Tensor | None:
        """tau log pi in training, or -tau log pi in evaluation; an absent class is left out in evaluation either way."""
        factor = 0.0 if self.training == self.post_hoc else self.tau if self.training else -self.tau
        if self.training and not factor:
            return None
        return torch.where(self.log_prior > ABSENT, factor * self.log_prior, ABSENT)

    def extra_repr(self) -> str:
        """tau, post_hoc."""
        return f"tau={self.tau}, post_hoc={self.post_hoc}"


@HEADS.register("ldam")
def ldam(
    in_features: int,
    num_classes: int,
    class_counts: Tensor,
    max_margin: Annotated[float, NOT_NEGATIVE] = 0.5,
    scale: Annotated[float, NOT_NEGATIVE] = 30.0,
    drw_epoch: Annotated[int, NOT_NEGATIVE] = 0,
    beta: Annotated[float, PART] = 0.9999,
) -> Head:
    """LDAM, with deferred re-weighting (Cao, Wei, Gaidon, Arechiga, Ma, NeurIPS 2019, equations 12 and 13, algorithm 1).

    Args:
        in_features: D.
        num_classes: K.
        class_counts: training samples of each class [K]; 0 for a class without any.
        max_margin: the rarest class's margin.
        scale: s of the cosine.
        drw_epoch: epoch from which classes are re-weighted by their effective number (160 of 200 in the paper); 0 for never.
        beta: of the effective number.
    """
    criterion = ClassBalanced(class_counts, beta, drw_epoch) if drw_epoch > 0 else CrossEntropy()
    return Head(Cosine(in_features, num_classes, scale), LabelDistributionMargin(class_counts, max_margin), criterion)


@HEADS.register("logit_adjustment")
def logit_adjustment(
    in_features: int, num_classes: int, class_counts: Tensor, tau: Annotated[float, NOT_NEGATIVE] = 1.0, post_hoc: bool = False
) -> Head:
    """Logit adjustment on a linear classifier (Menon et al., ICLR 2021): in the loss, or post hoc.

    Args:
        in_features: D.
        num_classes: K.
        class_counts: training samples of each class [K]; 0 for a class without any.
        tau: strength.
        post_hoc: plain training, and ``z - tau log pi`` for logits in evaluation.
    """
    return Head(Linear(in_features, num_classes), None, LogitAdjustment(class_counts, tau, post_hoc))


@HEADS.register("balanced_softmax")
def balanced_softmax(in_features: int, num_classes: int, class_counts: Tensor) -> Head:
    """Balanced softmax: cross entropy of ``z + log n_j`` in training, z in evaluation (Ren et al., NeurIPS 2020, eq. 4).

    ``log n_j`` and ``log pi_j`` differ by a constant, which no softmax sees: it is logit adjustment with tau 1.

    Args:
        in_features: D.
        num_classes: K.
        class_counts: training samples of each class [K]; 0 for a class without any.
    """
    return Head(Linear(in_features, num_classes), None, LogitAdjustment(class_counts))
