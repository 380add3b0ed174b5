"""Devices, threads and determinism."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pycls.errors import InputError
from pycls.runtime import devices


@pytest.fixture
def restore() -> Iterator[None]:
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = (torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.deterministic)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(before[0])
    cudnn.benchmark, cudnn.deterministic = before[1:]


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[torch.device]:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_auto_takes_the_first_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = pretend_gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose_device("auto", 1) == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    pretend_gpus(monkeypatch, 0)
    assert devices.choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.choose_device("auto").type == "cpu"
    assert devices.choose_device("cpu", 5) == torch.device("cpu")


def test_absent_devices_are_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "mps", "tpu"):
        with pytest.raises(InputError, match=name):
            devices.choose_device(name)
    pretend_gpus(monkeypatch, 2)
    with pytest.raises(InputError, match="3 processes on this machine need as many GPUs, but there are 2"):
        devices.choose_device("cuda", 2)


def test_threads_are_shared_evenly(monkeypatch: pytest.MonkeyPatch, restore: None) -> None:
    monkeypatch.setattr(devices, "available_cores", lambda: 7)
    assert [devices.set_threads(0, size) for size in (1, 2, 3, 8)] == [7, 3, 2, 1]
    assert devices.set_threads(2, 3) == 2 == torch.get_num_threads()


def test_cores_are_those_of_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: {1, 4}, raising=False)
    assert devices.available_cores() == 2


def test_determinism(monkeypatch: pytest.MonkeyPatch, restore: None) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    devices.set_deterministic(torch.device("cpu"), False, True)
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    devices.set_deterministic(torch.device("cuda"), False, True)
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in devices.os.environ
    devices.set_deterministic(torch.device("cuda"), True, True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert devices.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_fast_bf16_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, fast: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    flags = devices._cpu_flags(str(path))
    monkeypatch.setattr(devices, "_cpu_flags", lambda: flags)
    assert devices.has_fast_bf16(torch.device("cpu")) is fast
    assert not devices.has_fast_bf16(torch.device("mps"))


def test_without_a_cpuinfo_there_are_no_flags(tmp_path: Path) -> None:
    assert devices._cpu_flags(str(tmp_path / "none")) == set()


def test_fast_bf16_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, fast in [((7, 5), False), ((8, 0), True), ((12, 0), True)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert devices.has_fast_bf16(torch.device("cuda")) is fast
