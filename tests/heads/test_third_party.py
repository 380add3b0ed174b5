"""Parts from outside: what a subclass overrides is what is computed, forward and backward, and what it learns learns."""

import math

import pytest
import torch
from gradients import D, K, batch, check_gradients, randomised
from torch import Tensor, nn

import pycls
from pycls.heads import Head
from pycls.heads.cosface import AdditiveCosine
from pycls.heads.cosine import Cosine
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.focal import Focal
from pycls.heads.linear import Linear
from pycls.heads.ops.spec import ScoreSpec
from pycls.heads.parts import LogitsCriterion, Margin, SoftmaxCriterion, Target
from pycls.heads.rbf_softmax import Exponential
from pycls.heads.topk_svm import SmoothTopK
from pycls.heads.tvmf import TVMF
from pycls.heads.tvmf import StudentT as TVMFTransform


def logits_of(head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines [N, K] and labels of the samples that have one, and which those are."""
    x, y = batch()
    normal = nn.functional.normalize
    here = y >= 0
    return normal(x[here]) @ normal(head.weight).t(), y[here], here


class Twice(AdditiveCosine):
    """A margin made of one there is, by another formula."""

    def forward(self, value: Tensor, labels: Tensor, target: Target | None = None) -> Tensor:
        return super().forward(value, labels, target) - self.value


class TwiceInClosedForm(AdditiveCosine):
    def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        return value - 2 * self.value, torch.ones_like(value)


@pytest.mark.parametrize("kind", [Twice, TwiceInClosedForm])
def test_a_margin_made_of_another_has_its_own_formula(kind: type[Margin]) -> None:
    head = randomised(Head(Cosine(D, K, 4.0), kind(0.1), CrossEntropy(0.1)))
    expected, (cos, y, _) = head.eval(), logits_of(head)
    z = 4 * (cos - 0.2 * nn.functional.one_hot(y, K))
    expected = nn.functional.cross_entropy(z, y, label_smoothing=0.1)
    torch.testing.assert_close(head.train()(*batch()).loss, expected)
    check_gradients(head)


class Power(Margin):
    """``cos - exp(m) (1 - cos)^2 / 2`` with a learned m of each class: by autograd."""

    domain = "cosine"

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.full((K,), -1.0))

    def forward(self, value: Tensor, labels: Tensor, target: Target | None = None) -> Tensor:
        return value - self.size[labels].exp() * (1 - value).square() / 2


class Temperature(CrossEntropy):
    """Cross entropy at a learned temperature."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        self.inverse = nn.Parameter(torch.tensor(0.8))

    def forward(self, target: Tensor, others: Tensor, total: Tensor | None, labels: Tensor, num_classes: int) -> Tensor:
        scaled = (value if value is None else value * self.inverse for value in (target, others, total))
        return super().forward(*scaled, labels, num_classes)


class Hinge(LogitsCriterion):
    """The sum of the other classes' violations of a learned margin."""

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.tensor(2.0))

    def forward(self, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        others = 1 - nn.functional.one_hot(labels, logits.shape[1])
        return (nn.functional.softplus(self.size + logits - target[:, None]) * others).sum(dim=1)


@pytest.mark.parametrize("mixed", [False, True], ids=["labels", "mixture"])
@pytest.mark.parametrize("criterion", [CrossEntropy, Temperature, Focal, Hinge])
@pytest.mark.parametrize("margin", [None, AdditiveCosine, Power])
def test_what_margins_and_criteria_learn_has_gradients(margin, criterion, mixed: bool) -> None:
    smoothed = {"label_smoothing": 0.1} if issubclass(criterion, CrossEntropy) else {}
    similarity = Cosine(D, K, 3.0, "learned")
    head = randomised(Head(similarity, None if margin is None else margin(), criterion(**smoothed), margin_warmup=3))
    head.steps.fill_(1)
    head._advance = lambda: None  # every evaluation at the same step
    y = batch()[1]
    check_gradients(head, labels=(y, y.flip(0), 0.3) if mixed else y)


class ParametersInClosedForm(AdditiveCosine):
    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.ones(()))

    def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        return value - self.size, torch.ones_like(value)


class ParametersInClosedCriterion(Focal):
    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.ones(()))


def test_a_parameter_that_would_get_no_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ParametersInClosedForm|additive_cosine.*parameter size.*forward"):
        Head(Cosine(D, K), ParametersInClosedForm(), CrossEntropy())
    with pytest.raises(ValueError, match=r"focal.*parameter size.*forward"):
        Head(Cosine(D, K), None, ParametersInClosedCriterion())
    frozen = ParametersInClosedForm()
    frozen.size.requires_grad_(False)
    Head(Cosine(D, K), frozen, CrossEntropy())


class ByNorm(Margin):
    """As MagFace's: a margin that grows with the features' norm, and is differentiated by it."""

    domain = "cosine"
    needs_feature_norm = True

    def forward(self, value: Tensor, labels: Tensor, target: Target | None = None) -> Tensor:
        assert target is not None and target.feature_norm is not None
        return value - 0.1 * target.feature_norm.log1p()


def test_a_margin_may_depend_on_the_norm() -> None:
    head = randomised(Head(Cosine(D, K, 4.0), ByNorm(), CrossEntropy(0.1)))
    cos, y, here = logits_of(head)
    z = 4 * (cos - 0.1 * batch()[0][here].norm(dim=1, keepdim=True).log1p() * nn.functional.one_hot(y, K))
    torch.testing.assert_close(head(*batch()).loss, nn.functional.cross_entropy(z, y, label_smoothing=0.1))
    check_gradients(head)


@pytest.mark.parametrize("domain", ["cosine", "distance"])
def test_a_margin_with_a_slope_is_one_node_with_the_criterion(domain: str) -> None:
    class Squared(Margin):
        def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
            return value + 0.1 * value.square(), 1 + 0.2 * value

    Squared.domain = domain
    similarity = Cosine(D, K, 4.0) if domain == "cosine" else pycls.registry.SIMILARITIES.get("gaussian")(D, K, "diagonal")
    head = randomised(Head(similarity, Squared(), CrossEntropy(0.1)))
    assert "MarginSoftmax" in type(head(*batch()).loss.grad_fn).__name__
    check_gradients(head)


class Halved(Cosine):
    """The margin acts on twice the cosine."""

    def margin_map(self, target: Target) -> tuple[Tensor | float, float]:
        return self.scale / 2, 0.0


def test_a_margin_acts_where_the_similarity_says() -> None:
    head = randomised(Head(Halved(D, K, 4.0, "learned"), AdditiveCosine(0.1), CrossEntropy()))
    cos, y, _ = logits_of(head)
    z = head.scale * (cos - 0.05 * nn.functional.one_hot(y, K))
    torch.testing.assert_close(head(*batch()).loss, nn.functional.cross_entropy(z, y))
    check_gradients(head)


class Sharper(TVMFTransform):
    """A transform made of one that the kernels have, which do not know what it overrides."""

    def forward_(self, score: Tensor, scale: Tensor | None) -> Tensor:
        return super().forward_(score.mul_(0.5), scale)

    def backward_(self, grad: Tensor, logits: Tensor, scale: Tensor | None) -> Tensor:
        return super().backward_(grad, logits, scale).mul_(0.5)

    def score_of(self, logits: Tensor, scale: Tensor | None) -> Tensor:
        return super().score_of(logits, scale).mul_(2)


class Own(Exponential):
    """Only the way forward: 2 exp(u), whose slope is again z."""

    def forward_(self, score: Tensor, scale: Tensor | None) -> Tensor:
        return super().forward_(score, scale).mul_(2)


def test_a_transform_made_of_another_has_its_own_formula() -> None:
    head = randomised(Head(TVMF(D, K, 4.0), AdditiveCosine(0.1), CrossEntropy()))
    head.similarity.spec = ScoreSpec("cosine", transform=Sharper(4.0))
    cos, y, _ = logits_of(head)
    cos = 0.5 * (cos - 0.1 * nn.functional.one_hot(y, K))
    z = head.scale * ((1 + cos) / (1 + 4 * (1 - cos)) - 1)
    torch.testing.assert_close(head(*batch()).loss, nn.functional.cross_entropy(z, y))
    check_gradients(head)
    single = head.float()(batch()[0].float(), batch()[1])
    assert head.backend.reason == "the kernels do not have Sharper"
    torch.testing.assert_close(single.loss.double(), nn.functional.cross_entropy(z, y), rtol=1e-5, atol=1e-6)
    other = pycls.create_head("rbf_softmax", D, K, gamma=4.0, scale=3.0).float()
    x = batch()[0].float()
    plain = other(x).logits
    other.similarity.spec = ScoreSpec("distance", 0.25, math.log(3.0), Own())
    torch.testing.assert_close(other(x).logits, 2 * plain)
    check_gradients(randomised(other))


class Counting(Linear):
    """Overrides the pass itself."""

    def scores(self, *arguments, **named):
        found = super().scores(*arguments, **named)
        return found._replace(score=tuple(2 * value for value in found.score))


def test_a_similarity_may_change_the_pass() -> None:
    head = randomised(Head(Counting(D, K), None, CrossEntropy()))
    x, y = batch()
    z = head(x).logits
    target, here = 2 * z.gather(1, y.clamp(min=0)[:, None])[:, 0], y >= 0
    others = z.scatter(1, y.clamp(min=0)[:, None], -torch.inf).logsumexp(dim=1)
    expected = nn.functional.softplus(others - target)[here].mean()
    torch.testing.assert_close(head(x, y).loss, expected)
    check_gradients(head)


class Softer(SmoothTopK):
    def forward(self, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        return super().forward(0.5 * logits, 0.5 * target, labels)


def test_a_criterion_of_all_logits_made_of_another() -> None:
    head = randomised(Head(Linear(D, K), None, Softer(2)))
    plain = Head(Linear(D, K), None, SmoothTopK(2)).double()
    plain.load_state_dict(head.state_dict())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(head(*batch()).loss, plain(*batch()).loss)
    check_gradients(head)
    torch.testing.assert_close(head.float()(batch()[0].float(), batch()[1]).loss.double(), plain(*batch()).loss)


class Neither(SoftmaxCriterion):
    name = "neither"


def test_a_part_without_a_formula_says_what_it_lacks() -> None:
    with pytest.raises(NotImplementedError, match="Neither has neither value_and_grads nor forward"):
        Head(Linear(D, K), None, Neither()).double()(*batch())
    margin = type("Empty", (Margin,), {"domain": "cosine"})()
    with pytest.raises(NotImplementedError, match="Empty has neither value_and_slope nor forward"):
        Head(Cosine(D, K), margin, CrossEntropy()).double()(*batch())
