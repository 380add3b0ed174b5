"""A head within ``torch.compile`` as one graph, and its logits by ``torch.export``."""

import warnings

import pytest
import torch
from harness import gradients_of, make_batch, make_head, options_of, relative_error, set_radius
from torch import Tensor

import pycls
from pycls.heads.parts import Margin, Target

SIZES = [("arcface", 0), ("lgm", 1), ("lws", 0)]
HEADS = [("softmax", 0, "labels"), ("lsoftmax", 4, "mixture"), ("tvmf", 2, "labels"), ("smooth_topk", 0, "labels"),
         ("subcenter_arcface", 0, "labels"), ("center", 0, "mixture"), ("ring", 0, "labels"),
         ("logit_adjustment", 0, "missing")]  # fmt: skip


def compiled_and_eager(head: torch.nn.Module, features: Tensor, labels) -> tuple[list[Tensor], list[Tensor]]:
    """Loss, logits and gradients of a training step, as one graph and without the compiler; then the buffers.

    The graphs are what the compiler makes of forward and backward pass, without the time that its C++ takes.
    """
    before = {key: value.clone() for key, value in head.state_dict().items()}
    found = []
    torch._dynamo.reset()
    for module in (torch.compile(head, backend="aot_eager_decomp_partition", fullgraph=True), head):
        head.load_state_dict(before)
        x = features.clone().requires_grad_()
        output = module(x, labels)
        found.append([output.loss.detach(), output.logits.detach(), *gradients_of(output.loss, [x, *head.parameters()]),
                      *(value.clone().float() for value in head.buffers())])  # fmt: skip
    return found[0], found[1]


@pytest.mark.parametrize(("name", "case", "kind"), HEADS)
def test_a_step_as_one_graph(name: str, case: int, kind: str) -> None:
    options = options_of(name, case, 33)
    head = make_head(name, 10, 33, options, torch.float32, 0)
    batch = make_batch(name, head, options, 12, 0, kind)
    if name == "ring":  # at the first batch's mean norm the gradient by the radius is nothing but rounding
        head(batch.features, batch.labels)
        set_radius(head, 2.0)
    for one, other in zip(*compiled_and_eager(head, batch.features, batch.labels), strict=True):
        assert relative_error(one, other.double(), 1e-6) < 1e-5


@pytest.mark.parametrize(("name", "case"), SIZES)
def test_batches_of_several_sizes_and_evaluation(name: str, case: int) -> None:
    options = options_of(name, case, 33)
    head = make_head(name, 10, 33, options, torch.float32, 0)
    batch = make_batch(name, head, options, 12, 0)
    torch._dynamo.reset()
    compiled = torch.compile(head, backend="aot_eager_decomp_partition", fullgraph=True)
    for samples in (12, 7, 5):
        x, y = batch.features[:samples].requires_grad_(), batch.labels[:samples]
        losses = compiled(x, y).loss, head(x, y).loss
        torch.testing.assert_close(*losses)
        ours, theirs = (gradients_of(loss, [x, *head.parameters()]) for loss in losses)
        for one, other in zip(ours, theirs, strict=True):
            assert relative_error(one, other.double(), 1e-6) < 1e-5
        with torch.no_grad():
            torch.testing.assert_close(compiled(x).logits, head(x).logits)


@pytest.mark.parametrize(("name", "options", "warmup"), [
    ("center", {"weight": 1.0, "center_rate": 0.5}, 0), ("cosface", {"scale": 8.0}, 5),
    ("lsoftmax", {"lambda_base": 3.0, "lambda_gamma": 1.0, "lambda_power": 1.0}, 0),
])  # fmt: skip
def test_gradients_are_those_of_the_state_before_it_moves(name: str, options: dict, warmup: int) -> None:
    """The compiler computes again, in the backward pass, what is quick to compute: not from what has moved since."""
    head = make_head(name, 10, 33, options, torch.float32, 0)
    head.margin_warmup = warmup
    batch = make_batch(name, head, options, 12, 0)
    for one, other in zip(*compiled_and_eager(head, batch.features, batch.labels), strict=True):
        assert relative_error(one, other.double(), 1e-6) < 1e-5


class Learned(Margin):
    """``cos - m`` with a learned m: autograd's nodes instead of one."""

    domain = "cosine"

    def __init__(self) -> None:
        super().__init__()
        self.size = torch.nn.Parameter(torch.tensor(0.2))

    def forward(self, value: Tensor, labels: Tensor, target: Target | None = None) -> Tensor:
        return value - self.size


def test_parts_without_slopes_as_one_graph() -> None:
    cosine = pycls.create_head("normface", in_features=10, num_classes=33).similarity
    smoothed = pycls.registry.CRITERIA.get("cross_entropy")(0.1, [1.0 + k % 3 for k in range(33)])
    head = pycls.heads.Head(cosine, Learned(), smoothed, margin_warmup=5)
    for one, other in zip(*compiled_and_eager(head, torch.randn(8, 10), torch.arange(8)), strict=True):
        assert relative_error(one, other.double(), 1e-6) < 1e-5


@pytest.mark.parametrize(("name", "case"), [*SIZES, *((name, case) for name, case, _ in HEADS)])
def test_logits_as_an_exported_program(name: str, case: int) -> None:
    """Of any number of samples, with parameters that still learn."""
    head = make_head(name, 10, 33, options_of(name, case, 33), torch.float32, 0).eval()
    x = torch.randn(12, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(head, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    for samples in (12, 7):
        torch.testing.assert_close(program(x[:samples]).logits, head(x[:samples]).logits, rtol=1e-5, atol=1e-5)
