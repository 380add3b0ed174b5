"""The compiled elementwise part of the heads beside the reference, which is the same arithmetic by torch's operations."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import cases, gradients_of, make_batch, make_head, options_of, relative_error

import pycls
from pycls.heads import gram_function, gram_native, loss_native, topk_native
from pycls.heads.form import Form
from pycls.heads.gram import gram_scores
from pycls.heads.prototypes import Prototypes
from pycls.heads.rbf_softmax import rbf_softmax

ROOT = Path(__file__).parents[2]
ROWS, STEP, TOPK = gram_native._rows(), loss_native._functions(), topk_native._function()
pytestmark = pytest.mark.skipif(ROWS is None, reason="there is no C compiler")
IN_STEPS = {name for name in pycls.list_heads() if name not in ("smooth_topk", "hard_topk")}
IN_ROWS = IN_STEPS - {"subcenter_arcface"}


class Spy:
    """Stands before the compiled functions and notes what is called."""

    def __init__(self, functions) -> None:
        self.functions, self.calls = functions, []

    def __getattr__(self, name: str):
        def call(*arguments, **named):
            self.calls.append(name)
            return getattr(self.functions, name)(*arguments, **named)

        return call


def one_step(
    head: torch.nn.Module, features: torch.Tensor, labels, way: str, monkeypatch
) -> tuple[list[torch.Tensor], set[str]]:
    """Logits, loss and all gradients; and what was called of the compiled functions.

    way: "torch" for torch's operations alone, "rows" for the pass over the prototypes compiled, "step" for all that there is.
    """
    rows, step = Spy(ROWS), Spy(STEP)
    monkeypatch.setattr(gram_native, "_rows", lambda: None if way == "torch" else rows)
    monkeypatch.setattr(loss_native, "_functions", lambda: step if way == "step" else None)
    monkeypatch.setattr(topk_native, "_function", lambda: TOPK if way == "step" else None)
    x = features.clone().requires_grad_()
    output = head(x, labels)
    known = [p for p in head.parameters() if p.requires_grad]
    found = [output.loss.detach(), *gradients_of(output.loss, [x, *known])]
    called = {f"rows.{name}" for name in rows.calls} | {f"step.{name}" for name in step.calls}
    return found if output.logits is None else [output.logits.detach(), *found], called


def agree(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other.double(), 1e-6) < 1e-5


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize(("name", "case"), cases())
def test_it_is_what_torchs_operations_give(name: str, case: int, chunk: int, monkeypatch) -> None:
    """33 classes fill no vector of the processor evenly, and 7 a chunk leave most targets in another chunk."""
    options = options_of(name, case, 33)
    torch.manual_seed(case)
    head = make_head(name, 10, 33, options, torch.float32, case)
    head.similarity.chunk = chunk
    batch = make_batch(name, head, options, 40, case)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    found = {}
    for way in ("torch", "rows", "step"):
        head.load_state_dict(before)  # centres and schedules have moved
        found[way], called = one_step(head, batch.features, batch.labels, way, monkeypatch)
        if way == "rows" and name in IN_ROWS:
            assert {"rows.forward", "rows.backward"} <= called
        if way == "step" and name in IN_STEPS and chunk == 0:
            assert {"step.prepare", "step.forward", "step.gradient"} <= called
        if way == "torch":
            assert not called
    agree(found["rows"], found["torch"])
    agree(found["step"], found["torch"])


@pytest.mark.parametrize("name", sorted(IN_STEPS))
def test_more_gradients_than_that_of_the_loss(name: str, monkeypatch) -> None:
    """Logits and loss may both be used, and the loss by a factor."""
    found = []
    for way in ("torch", "step"):
        torch.manual_seed(0)
        head = make_head(name, 10, 33, options_of(name, 0, 33), torch.float32, 0)
        batch = make_batch(name, head, options_of(name, 0, 33), 40, 0)
        monkeypatch.setattr(loss_native, "_functions", lambda way=way: STEP if way == "step" else None)
        monkeypatch.setattr(gram_native, "_rows", lambda: None)
        x = batch.features.clone().requires_grad_()
        output = head(x, batch.labels)
        total = -3 * output.loss + output.logits.square().mean()
        found.append(gradients_of(total, [x, *(p for p in head.parameters() if p.requires_grad)]))
    agree(found[1], found[0])


def test_a_step_backwards_twice_gives_the_same_twice() -> None:
    head = pycls.create_head("normface", in_features=10, num_classes=33)
    loss = head(torch.randn(8, 10), torch.arange(8)).loss
    first = torch.autograd.grad(loss, list(head.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(head.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_backward_within_autocast_is_in_full_precision() -> None:
    head, x = pycls.create_head("arcface", in_features=10, num_classes=33), torch.randn(8, 10, requires_grad=True)
    loss = head(x, torch.arange(8)).loss
    exact = torch.autograd.grad(loss, [x, head.weight], retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(loss, [x, head.weight])
    assert all(torch.equal(a, b) for a, b in zip(exact, found, strict=True))


def test_a_label_too_many_is_refused_before_anything_is_read() -> None:
    head = pycls.create_head("lsoftmax", in_features=10, num_classes=33)
    with pytest.raises(ValueError, match="label 33 in a head of 33 classes"):
        head(torch.randn(2, 10), torch.tensor([0, 33]))
    with pytest.raises(ValueError, match="2 features but 3 labels"):
        head(torch.randn(2, 10), torch.tensor([0, 1, 2]))


def test_what_an_outsider_changes_is_believed() -> None:
    """A margin, similarity or criterion made of one that the C knows may do something else."""
    cosface, cosine = pycls.registry.MARGINS.get("additive_cosine"), pycls.registry.SIMILARITIES.get("cosine")
    plain = pycls.registry.CRITERIA.get("cross_entropy")

    class Twice(cosface):
        def forward(self, measure, labels):
            return measure - 2 * self.value

    class Halved(cosine):
        def to_margin_domain(self, u, target):
            return super().to_margin_domain(u, target) / 2

    class Doubled(plain):
        def forward(self, *arguments):
            return 2 * super().forward(*arguments)

    class Shifted(cosine):
        def scores(self, *arguments, **named):
            return super().scores(*arguments, **named)

    known = (cosine(10, 33), cosface(0.1), plain())
    assert loss_native.tail_of(*known, 1.0) is not None
    others = ((known[0], Twice(0.1), known[2]), (Halved(10, 33), *known[1:]), (Shifted(10, 33), *known[1:]))
    for parts in (*others, (*known[:2], Doubled())):
        assert loss_native.tail_of(*parts, 1.0) is None


@pytest.mark.parametrize("labels", ["absent", "one"])
def test_samples_without_a_class_and_weighted_sums_of_logits(labels: str, monkeypatch) -> None:
    torch.manual_seed(0)
    head = pycls.heads.Head(
        pycls.create_head("softmax", in_features=10, num_classes=33).similarity, None,
        pycls.registry.CRITERIA.get("cross_entropy")(0.1, [1.0 + k % 3 for k in range(33)]),
    )  # fmt: skip
    head.similarity.weight.data.normal_()
    x, y = torch.randn(20, 10), torch.randint(33, (20,))
    if labels == "absent":
        y[::3] = -1
    ours, called = one_step(head, x, y, "rows", monkeypatch)
    assert "rows.backward" in called
    agree(ours, one_step(head, x, y, "torch", monkeypatch)[0])


@pytest.mark.parametrize("name", sorted(IN_STEPS))
def test_steps_without_a_class_for_some_samples_or_any(name: str, monkeypatch) -> None:
    options = options_of(name, 0, 33)
    for absent in (slice(0, None, 3), slice(None)):
        head = make_head(name, 10, 33, options, torch.float32, 0)
        batch = make_batch(name, head, options, 40, 0)
        labels = batch.labels.clone()
        labels[absent] = -1
        before = {key: value.clone() for key, value in head.state_dict().items()}
        ours, called = one_step(head, batch.features, labels, "step", monkeypatch)
        assert "step.gradient" in called
        head.load_state_dict(before)
        agree(ours, one_step(head, batch.features, labels, "torch", monkeypatch)[0])


@pytest.mark.parametrize("way", ["rows", "step"])
def test_two_runs_give_the_same_bits(way: str, monkeypatch) -> None:
    torch.manual_seed(0)
    head = pycls.create_head("tvmf", in_features=64, num_classes=1000)
    x, y = torch.randn(128, 64), torch.randint(1000, (128,))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runs = [one_step(head, x, y, way, monkeypatch)[0] for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def exponentials(u: torch.Tensor) -> torch.Tensor:
    """exp(u) [n] as the compiled link has it: of one-dimensional features 1 and prototypes u, less their squares."""
    form = rbf_softmax(1, 2).similarity.form
    flat = Form("product", link=form.link)
    z = gram_scores(torch.ones(1, 1), Prototypes(u[:, None].contiguous()), flat).logits
    assert z is not None
    return z[0]


def test_the_exponential_is_exact_to_the_last_places() -> None:
    u = torch.cat((torch.linspace(-87.2, 88.6, 200_001), torch.linspace(-1, 1, 200_001), torch.tensor([0.0, -0.0])))
    exact = u.double().exp()
    assert float(((exponentials(u).double() - exact) / exact).abs().max()) < 2.5e-7  # two units in the last place


def test_the_exponential_has_limits() -> None:
    found = exponentials(torch.tensor([-math.inf, -1e30, -104.0, 89.0, 1e30, math.inf, math.nan]))
    assert found[:3].tolist() == [0, 0, 0] and found[3:6].tolist() == [math.inf] * 3 and bool(found[6].isnan())


def test_what_is_not_finite_stays_so() -> None:
    """A loss that became NaN must be seen."""
    for name in ("softmax", "arcface", "rbf_softmax", "tvmf"):
        head = pycls.create_head(name, in_features=4, num_classes=5)
        for bad in (math.nan, math.inf):
            x = torch.randn(3, 4)
            x[1, 2] = bad
            finite = head(x, torch.tensor([0, 1, 2])).loss.isfinite()
            assert not finite or (name == "rbf_softmax" and bad == math.inf), (name, bad)


def test_who_is_asked_what() -> None:
    """Double precision, mixtures, several centres, strange links: torch's operations."""
    x, weight = torch.randn(4, 3), torch.randn(6, 3)
    column = torch.zeros(4, 1, dtype=torch.int64)
    ask = gram_function.rows_for
    assert ask(Form(), [column], None, x, weight) is ROWS and ask(Form(), [], None, x, weight, None) is ROWS
    for form, columns, bias, others in (
        (Form(), [column], None, (x.double(), weight.double())),
        (Form(), [column, column], None, (x, weight)),
        (Form("cosine", num_centers=2), [column], None, (x, weight)),
        (Form("cosine"), [column], torch.zeros(6), (x, weight)),
        (Form(), [column], None, (x.t().contiguous().t(), weight)),
        (Form(link=type("Own", (type(Form().link),), {})()), [column], None, (x, weight)),
    ):
        assert ask(form, columns, bias, *others) is None


def test_without_a_compiler_torch_does_it(tmp_path: Path) -> None:
    code = ("import torch, pycls; from pycls.heads import gram_native\n"
            "loss = pycls.create_head('arcface', in_features=4, num_classes=5)(torch.ones(2, 4), torch.tensor([0, 1])).loss\n"
            "loss.backward(); print(gram_native._rows(), bool(loss > 0))")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "PYCLS_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "None True\n", done


@pytest.mark.parametrize("threshold", [0.0, 1000.0])
@pytest.mark.parametrize("tau", [0.01, 1.0, None])
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_top_k_losses_of_many_classes(k: int, tau: float | None, threshold: float) -> None:
    """Beside torch's operations in double precision; of wide scores, of equal ones, and of a target far above and below."""
    torch.manual_seed(k)
    scores = torch.randn(12, 3001) * torch.tensor([1e-3, 1.0, 30.0]).repeat(4)[:, None]
    scores[3] = 0.5
    labels = torch.randint(3001, (12,))
    target = scores.gather(1, labels[:, None])[:, 0].clone()
    target[4], target[5] = 100.0, -100.0
    kind = pycls.registry.CRITERIA.get("hard_topk" if tau is None else "smooth_topk")
    criterion = kind(k) if tau is None else kind(k, tau, threshold=threshold)
    found = []
    for dtype in (torch.float32, torch.float64):
        z, of_target = scores.to(dtype).requires_grad_(), target.to(dtype).requires_grad_()
        losses = criterion(z, of_target, labels)
        found.append([losses.detach(), *torch.autograd.grad(losses.sum(), [z, of_target])])
    assert type(losses.grad_fn).__name__ != "_TopKBackward", "double precision is torch's"
    for one, other in zip(*found, strict=True):
        hard = tau is None and one.ndim == 2  # of equal scores any may be the k-th
        where = [i for i in range(12) if i != 3 or not hard]
        assert relative_error(one[where], other[where], 1e-6) < 2e-5
    assert found[0][1].gather(1, labels[:, None]).abs().max() == 0


@pytest.mark.parametrize("name", ["smooth_topk", "hard_topk"])
def test_a_score_that_is_no_number_is_seen_in_top_k_losses(name: str) -> None:
    scores = torch.randn(2, 40)
    scores[1, 7] = math.nan
    losses = pycls.registry.CRITERIA.get(name)(1)(scores, torch.zeros(2), torch.tensor([0, 1]))
    assert losses.isnan().tolist() == [False, True]


def test_the_terms_are_as_exact_as_the_loss() -> None:
    """Beside a likelihood of 400 a cross entropy of 1e-6 is not what is left of their sum."""
    head = pycls.create_head("lgm", in_features=8, num_classes=3, alpha=0.0, likelihood_weight=100.0)
    y = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        head.weight.copy_(14**0.5 * torch.eye(3, 8))
        x = head.weight[y] + 1
    found, expected = head(x, y).terms, head.double()(x.double(), y).terms
    assert expected["likelihood"] > 100 and 1e-7 < expected["cross_entropy"] < 1e-5
    for term, value in expected.items():
        torch.testing.assert_close(found[term].double(), value, rtol=1e-4, atol=1e-30)
