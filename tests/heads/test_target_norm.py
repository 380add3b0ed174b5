"""Similarities from outside that give the features a norm: every kind, several centres, in chunks, in half precision."""

import pytest
import torch
from gradients import D, K, batch, check_gradients, randomised
from harness import gradients_of, relative_error
from torch import Tensor, nn

from pycls.heads import Head
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.ops.spec import ScoreSpec
from pycls.heads.parts import FeatureInput, Similarity, Target


class Normed(Similarity):
    """Any kind of score, with a bias, of features of a given norm: a number, or a learned one."""

    def __init__(self, kind: str, norm: float | None, num_centers: int = 1) -> None:
        super().__init__()
        self.domain = "distance" if kind == "distance" else None  # type: ignore[misc]
        self.weight = nn.Parameter(torch.empty(K * num_centers, D).normal_(generator=torch.Generator().manual_seed(2)))
        self.bias = nn.Parameter(torch.zeros(K))
        self.norm = nn.Parameter(torch.tensor(1.5)) if norm is None else norm
        self.spec = ScoreSpec(kind, 0.3 if kind == "distance" else 0.0, 0.2, num_centers=num_centers)

    def inputs(self, features: Tensor) -> FeatureInput:
        return FeatureInput(features, self.norm)

    def margin_map(self, target: Target) -> tuple[float, Tensor]:
        return -0.3, torch.tensor(0.2)


def by_formula(head: Head, x: Tensor) -> Tensor:
    """Logits [N, K], by plain autograd."""
    x, similarity = head.similarity.norm * nn.functional.normalize(x), head.similarity
    if similarity.spec.kind == "product":
        u = x @ head.weight.t()
    elif similarity.spec.kind == "cosine":
        u = x @ nn.functional.normalize(head.weight).t()
    else:
        u = 0.2 - 0.3 * (x[:, None] - head.weight).square().sum(dim=2)
    return u.unflatten(1, (K, -1)).amax(dim=2) + head.bias


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("norm", [2, 1.5, None], ids=["int", "float", "learned"])
@pytest.mark.parametrize("centers", [1, 2])
@pytest.mark.parametrize("kind", ["product", "cosine", "distance"])
def test_features_of_a_given_norm(kind: str, centers: int, norm: float | None, chunk: int) -> None:
    head = randomised(Head(Normed(kind, norm, centers), None, CrossEntropy(0.1)))
    head.chunk = chunk
    x, y = batch()
    torch.testing.assert_close(head(x).logits, by_formula(head, x))
    expected = nn.functional.cross_entropy(by_formula(head, x), y, ignore_index=-1, label_smoothing=0.1)
    torch.testing.assert_close(head(x, y).loss, expected)
    check_gradients(head)
    check_gradients(head, "logits")
    # compiled
    wanted = gradients_of(expected, [*head.parameters()])
    single = Head(Normed(kind, norm, centers), None, CrossEntropy(0.1))
    single.load_state_dict(head.state_dict())
    single.chunk = chunk
    found = gradients_of(single(x.float(), y).loss, [*single.parameters()])
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one, other, 1e-2) < 1e-5


@pytest.mark.parametrize("norm", [2.0, None], ids=["float", "learned"])
@pytest.mark.parametrize("kind", ["product", "cosine", "distance"])
def test_features_of_a_given_norm_in_half_precision(kind: str, norm: float | None, monkeypatch) -> None:
    monkeypatch.setattr("pycls.heads.head.autocast_type", lambda x: torch.bfloat16)
    head = Head(Normed(kind, norm), None, CrossEntropy(0.1))
    with torch.no_grad():
        head.weight.copy_(head.weight.bfloat16())
    x, y = batch()[0].float().bfloat16().float(), batch()[1]
    leaf = x.clone().requires_grad_()
    output = head(leaf, y)
    found = gradients_of(output.loss, [leaf, *head.parameters()])
    exact = x.double().requires_grad_()
    head.double()
    loss = nn.functional.cross_entropy(by_formula(head, exact), y, ignore_index=-1, label_smoothing=0.1)
    assert relative_error(output.loss.detach(), loss.detach(), 1e-6) < 2e-5
    for one, other in zip(found, gradients_of(loss, [exact, *head.parameters()]), strict=True):
        assert relative_error(one, other, 1e-6) < 3 * torch.finfo(torch.bfloat16).eps
