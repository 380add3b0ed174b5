"""Snapshots: the same bits as what was copied, and nothing goes unseen that is to be finite and is not."""

import pytest
import torch
from torch import Tensor, nn

from pycls.engine.checkpoint.snapshot import LocalShard, take


def tensors() -> dict[str, Tensor]:
    """Of every type and kind of memory."""
    torch.manual_seed(0)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.int8)
    found = {str(kind): (torch.randn(37, 5) * 100).to(kind) for kind in kinds}
    image = torch.randn(4, 3, 9, 7)
    return found | {
        "empty": torch.ones(0), "bool": torch.rand(77) < 0.5, "number": torch.tensor(3), "parameter": nn.Parameter(image),
        "complex": torch.randn(5, dtype=torch.complex64).conj(), "spread": torch.ones(1, 5).expand(4, 5),
        "channels last": image.contiguous(memory_format=torch.channels_last), "turned": torch.randn(8, 6).t(),
        "with gaps": torch.randn(9, 9)[::2, 1::3], "negative": torch._neg_view(torch.randn(40)),
    }  # fmt: skip


def test_copies_are_the_same_bits_in_memory_that_is_used_again() -> None:
    sources, memory = tensors(), {}
    for _ in range(2):
        found, before = take(sources, memory), {name: copy.data_ptr() for name, copy in memory.items()}
        for name, source in sources.items():
            assert torch.equal(found.tensors[name], source) and found.tensors[name].data_ptr() == before[name], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_found_wherever_it_stands(dtype: torch.dtype, value: float) -> None:
    most = torch.finfo(dtype).max
    for place in range(17):
        good = torch.full((17,), most / 4, dtype=dtype)  # the sum overflows, the numbers are finite
        good[0], good[-1] = torch.finfo(dtype).tiny / 2, most
        bad = good.clone()
        bad[place] = value
        for found in (bad, nn.Parameter(bad), LocalShard(bad)):
            state = {"good": good, "elsewhere": bad, "bad": found, "worse": bad}
            first = "worse" if isinstance(found, LocalShard) else "bad"  # shards come last
            assert take(state, finite={"good", "bad", "worse"}).bad == first
            assert take(state, finite={"good"}).bad is None
