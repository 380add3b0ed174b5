"""The compiled elementwise part of the heads beside the reference, which is the same arithmetic by torch's operations."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import cases, gradients_of, make_batch, make_head, options_of, relative_error

import pycls
from pycls.heads import gram_function, gram_native
from pycls.heads.form import Form
from pycls.heads.gram import gram_scores
from pycls.heads.rbf_softmax import rbf_softmax

ROOT = Path(__file__).parents[2]
ROWS = gram_native._rows()
pytestmark = pytest.mark.skipif(ROWS is None, reason="there is no C compiler")
COMPILED = {name for name in pycls.list_heads() if name not in ("subcenter_arcface", "smooth_topk", "hard_topk")}


class Spy:
    """Stands before the compiled functions and counts their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        def call(*arguments, **named):
            self.calls.append(name)
            return getattr(ROWS, name)(*arguments, **named)

        return call


def one_step(head: torch.nn.Module, features: torch.Tensor, labels, spy: Spy | None, monkeypatch) -> list[torch.Tensor]:
    """Logits, loss and all gradients; by the compiled functions, or with None by torch's operations."""
    monkeypatch.setattr(gram_native, "_rows", lambda: spy)
    x = features.clone().requires_grad_()
    output = head(x, labels)
    known = [p for p in head.parameters() if p.requires_grad]
    found = [output.loss.detach(), *gradients_of(output.loss, [x, *known])]
    return found if output.logits is None else [output.logits.detach(), *found]


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize(("name", "case"), cases())
def test_it_is_what_torchs_operations_give(name: str, case: int, chunk: int, monkeypatch) -> None:
    """33 classes fill no vector of the processor evenly, and 7 a chunk leave most targets in another chunk."""
    options = options_of(name, case, 33)
    torch.manual_seed(case)
    head = make_head(name, 10, 33, options, torch.float32, case)
    head.similarity.chunk = chunk
    batch = make_batch(name, head, options, 40, case)
    spy = Spy()
    head.eval()  # twice the same: neither centres nor schedules move
    ours = one_step(head, batch.features, batch.labels, spy, monkeypatch)
    theirs = one_step(head, batch.features, batch.labels, None, monkeypatch)
    assert name not in COMPILED or {"forward", "backward"} <= set(spy.calls)
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other.double(), 1e-6) < 1e-5


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
    spy = Spy()
    ours = one_step(head, x, y, spy, monkeypatch)
    assert "backward" in spy.calls
    for one, other in zip(ours, one_step(head, x, y, None, monkeypatch), strict=True):
        assert relative_error(one, other.double(), 1e-6) < 1e-5


def test_two_runs_give_the_same_bits(monkeypatch) -> None:
    torch.manual_seed(0)
    head = pycls.create_head("tvmf", in_features=64, num_classes=1000)
    x, y = torch.randn(128, 64), torch.randint(1000, (128,))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runs = [one_step(head, x, y, ROWS, monkeypatch) for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def exponentials(u: torch.Tensor) -> torch.Tensor:
    """exp(u) [n] as the compiled link has it: of one-dimensional features 1 and prototypes u, less their squares."""
    form = rbf_softmax(1, 2).similarity.form
    flat = Form("product", link=form.link)
    z = gram_scores(torch.ones(1, 1), u[:, None].contiguous(), flat).logits
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
