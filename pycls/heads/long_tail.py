"""Heads for long-tailed training sets: LDAM, logit adjustment, balanced softmax. They know the classes' counts."""

from typing import Annotated

from torch import Tensor

from pycls.heads.codes import MarginCode, MarginKind
from pycls.heads.cosine import Cosine
from pycls.heads.cross_entropy import ClassBalanced, CrossEntropy, as_counts
from pycls.heads.head import Head
from pycls.heads.linear import Linear
from pycls.heads.parts import Margin
from pycls.ranges import NOT_NEGATIVE, PART
from pycls.registry import CRITERIA, HEADS, MARGINS


@MARGINS.register("ldam")
class LabelDistributionMargin(Margin):
    """``cos - m_y`` with ``m_j = C n_j^(-1/4)``, the largest being max_margin (Cao et al., NeurIPS 2019, equation 13).

    Args:
        class_counts: training samples of each class [K].
        max_margin: the rarest class's margin, >= 0.

    Raises:
        ValueError: if max_margin is negative.
    """

    name = "ldam"
    domain = "cosine"
    margins: Tensor

    def __init__(self, class_counts: Tensor, max_margin: Annotated[float, NOT_NEGATIVE] = 0.5) -> None:
        super().__init__()
        shape = as_counts(class_counts).double() ** -0.25
        self.max_margin = max_margin
        self.register_buffer("margins", max_margin * shape / shape.max())

    def forward(self, measure: Tensor, labels: Tensor) -> Tensor:
        """cos - m_y."""
        return measure - self.margins[labels].to(measure.dtype)

    def code(self) -> MarginCode:
        """cos - m_y."""
        return MarginCode(MarginKind.LESS_COSINE, margins=self.margins.double())

    def extra_repr(self) -> str:
        """max_margin."""
        return f"max_margin={self.max_margin}"


@CRITERIA.register("logit_adjustment")
class LogitAdjustment(CrossEntropy):
    """Cross entropy of ``z + tau log pi`` in training (Menon et al., ICLR 2021, equation 10), of z in evaluation.

    Post hoc (equation 9) it is the other way round: plain in training, and ``z - tau log pi`` are the logits in evaluation.

    Args:
        class_counts: training samples of each class [K]; pi are their shares.
        tau: strength; 1 is the balanced softmax.
        post_hoc: adjust in evaluation instead of in training.
    """

    name = "logit_adjustment"
    log_prior: Tensor

    def __init__(self, class_counts: Tensor, tau: Annotated[float, NOT_NEGATIVE] = 1.0, post_hoc: bool = False) -> None:
        super().__init__()
        counts = as_counts(class_counts).double()
        self.tau, self.post_hoc = tau, post_hoc
        self.register_buffer("log_prior", (counts / counts.sum()).log())

    def check(self, num_classes: int) -> None:
        """One count a class."""
        if len(self.log_prior) != num_classes:
            raise ValueError(f"{len(self.log_prior)} class_counts for {num_classes} classes")

    def offset(self) -> Tensor | None:
        """tau log pi in training, or -tau log pi in evaluation."""
        if self.training == self.post_hoc:
            return None
        return (self.tau if self.training else -self.tau) * self.log_prior

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
        class_counts: training samples of each class [K].
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
        class_counts: training samples of each class [K].
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
        class_counts: training samples of each class [K].
    """
    return Head(Linear(in_features, num_classes), None, LogitAdjustment(class_counts))
