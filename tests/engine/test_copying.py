"""Copies of many tensors: by compiled C and by torch the same bytes, and nothing that is not finite goes by unseen."""

import pytest
import torch
from torch import Tensor, nn

import pycls
from pycls.engine.checkpoint import copying
from pycls.engine.checkpoint.checkpoints import model_state
from pycls.engine.checkpoint.snapshot import LocalShard, take
from pycls.heads.parallel.shards import ClassShard, shard_classes


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways; the first is skipped where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(copying, "copy_function", lambda: None)
    elif copying.copy_function() is None:
        pytest.skip("no C compiler")
    return str(request.param)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * 100).to(dtype)


def tensors() -> dict[str, Tensor]:
    """Of every kind of memory and of sizes about a cache line's, and some larger than a thread's share."""
    torch.manual_seed(0)
    found = {f"of {n}": drawn(n) for n in (0, 1, 15, 16, 17, 31, 33, 4095, 4096, 4097, 300_001)}
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.int8)
    found |= {str(kind): drawn(37, 5, dtype=kind) for kind in kinds}
    image = drawn(4, 3, 9, 7)
    return found | {
        "bool": torch.rand(77) < 0.5, "number": torch.tensor(3), "complex": torch.randn(5, dtype=torch.complex64).conj(),
        "parameter": nn.Parameter(drawn(12, 12)), "channels last": image.contiguous(memory_format=torch.channels_last),
        "with gaps": drawn(9, 9)[::2, 1::3], "turned": drawn(8, 6).t(), "spread": torch.ones(1, 5).expand(4, 5),
        "unaligned": drawn(1001)[1:], "negative": torch._neg_view(drawn(40)), "last": drawn(200_003),
    }  # fmt: skip


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_copies_are_the_same_bits(threads: int) -> None:
    sources, before = tensors(), torch.get_num_threads()
    copies = {name: torch.empty_like(source, requires_grad=False) for name, source in sources.items()}
    copies["of 4097"] = torch.empty(4098)[1:]  # not where a cache line starts
    try:
        torch.set_num_threads(threads)
        assert copying.copy_all(sources, copies) is None
    finally:
        torch.set_num_threads(before)
    for name, source in sources.items():
        assert torch.equal(copies[name], source), name


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_found_wherever_it_stands(dtype: torch.dtype, value: float) -> None:
    most = torch.finfo(dtype).max
    for size in (1, 7, 16, 50):
        for place in range(size):
            good = torch.full((size,), most / 4, dtype=dtype)
            good[0], good[-1] = torch.finfo(dtype).tiny / 2, -most
            bad = good.clone()
            bad[place] = value
            sources = {"good": good, "elsewhere": bad.clone(), "bad": bad, "worse": bad.clone()}
            copies = {name: torch.empty_like(source) for name, source in sources.items()}
            assert copying.copy_all(sources, copies, {"good", "bad", "worse"}) == "bad"
            assert copying.copy_all(sources, copies, {"good"}) is None


@pytest.mark.usefixtures("way")
def test_sums_that_overflow_are_finite_numbers() -> None:
    large = {"weights": torch.full((100,), torch.finfo(torch.float32).max)}
    assert copying.copy_all(large, {"weights": torch.empty(100)}, {"weights"}) is None


def test_a_snapshot_names_what_was_to_be_finite_and_is_not() -> None:
    good, bad = torch.ones(3), torch.tensor([1.0, float("nan")])
    for found in (bad, nn.Parameter(bad), LocalShard(bad)):
        state = {"model": {"a": good, "b": found}}
        assert take(state, finite={"model/a", "model/b"}).bad == "model/b"
        assert take(state, finite={"model/a"}).bad is None, "a buffer may hold what it likes"
    assert take({"model": {"a": bad, "c": LocalShard(bad)}}, finite={"model/a", "model/c"}, shards_only=True).bad == "model/c"


def test_a_process_that_has_all_shared_classes_alone() -> None:
    """Its prototypes are no parts then, and what is saved of them is no parameter."""
    head = pycls.create_head("cosface", in_features=3, num_classes=4)
    shard_classes(head, ClassShard(4))
    names = {f"model/{name}" for name, _ in head.named_parameters()}
    assert take({"model": model_state(head, "sharded")}, finite=names).bad is None
    with torch.no_grad():
        head.weight[2, 1] = float("nan")
    assert take({"model": model_state(head, "sharded")}, finite=names).bad == "model/similarity.weight"
