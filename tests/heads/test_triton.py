"""Triton's kernels: by its interpreter, through its compiler for Hopper, and, where there is a GPU, on it.

``triton_cases.py`` has what is checked by the interpreter, which needs no GPU but a process of its own.
"""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness import gradients_of, make_batch, make_head, options_of, relative_error
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pycls
from pycls.heads.ops import chunks, fused, torch_backend, triton_backend
from pycls.heads.ops.backend import Choice
from pycls.heads.ops.spec import ScoreSpec
from pycls.heads.ops.triton_backend import TritonBackend

ROOT = Path(__file__).parents[2]
HALVES = [torch.bfloat16, torch.float16]
HEADS = ["softmax", "lsoftmax", "normface", "arcface", "tvmf", "rbf_softmax", "lgm", "logit_adjustment"]
"""All that differs in the pass: kinds, transforms, norms of targets, learned scales, offsets."""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@needs_triton
@pytest.mark.parametrize(
    "some", [["-k", "softmax-0 or arcface or trial or absent or rival"], pytest.param([], marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_by_the_interpreter(some: list[str], tmp_path: Path) -> None:
    file = str(Path(__file__).with_name("triton_cases.py"))
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", file, *some]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


class Recorder:
    """Stands for the module of kernels: notes with which types and constants each is called, and runs nothing."""

    def __init__(self) -> None:
        self.variants: set[tuple] = set()

    def __getattr__(self, name: str):
        recorder = self

        class Kernel:
            def __getitem__(self, grid):
                return lambda *arguments, num_warps=4, **constants: recorder.variants.add(
                    (name, tuple(map(type_of, arguments)), tuple(constants.items()), num_warps)
                )

        return Kernel()


def type_of(value) -> str | None:
    """As Triton writes it; None for what is not there."""
    if isinstance(value, Tensor):
        return {torch.float32: "*fp32", torch.int64: "*i64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[value.dtype]
    return None if value is None else "fp32" if isinstance(value, float) else "i32"


def used_variants(types: list[torch.dtype | None], trials: list[torch.dtype]) -> list[tuple]:
    """Every variant of a kernel that the heads use in these types, with and without kept logits, and that trials use."""
    recorder = Recorder()
    backend = TritonBackend(recorder)
    for dtype in trials:
        for kind, kernel in (("product", 0), ("cosine", 0), ("cosine", 2), ("distance", 0), ("distance", 1)):
            triton_backend.try_out(backend, torch.device("cpu"), dtype, kind, kernel)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "select", lambda *arguments: Choice(backend, ""))
        for half in types:
            patch.setattr("pycls.heads.head.autocast_type", lambda x, half=half: half)
            for name in HEADS:
                for chunk in (0, 2048):
                    head = make_head(name, 512, 2500, options_of(name, 0, 2500), torch.float32, 0)
                    head.chunk = chunk
                    head(torch.ones(4, 512, requires_grad=True), torch.arange(4)).loss.backward()
    return sorted(recorder.variants, key=str)


@needs_triton
@pytest.mark.parametrize(
    ("types", "trials"),
    [pytest.param([torch.bfloat16], [], marks=pytest.mark.extra),
     pytest.param([None, torch.float16], [torch.float32, *HALVES], marks=pytest.mark.slow)],
    ids=["bf16", "others"],
)
def test_every_variant_compiles_for_hopper(types: list, trials: list, tmp_path: Path, monkeypatch) -> None:
    """The compiler needs no device; what it makes has to fit into one."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pycls.heads.ops import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    variants = used_variants(types, trials)
    assert {name for name, *_ in variants} == {"squares", "inverse_norms", "combine", "to_targets", "forward", "backward"}
    for name, types, constants, warps in variants:
        kernel = getattr(triton_kernels, name)
        known = dict(zip(kernel.arg_names, types, strict=False))
        fixed = {**{key: None for key, kind in known.items() if kind is None}, **dict(constants)}
        signature = {key: "constexpr" if key in fixed else known[key] for key in kernel.arg_names}
        source = ASTSource(kernel, signature, fixed)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        assert made.asm["cubin"] and made.metadata.shared <= 64 << 10, name


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", [*HEADS[:-1], "subcenter_arcface", "smooth_topk"])  # the last one reads its counts
def test_what_torch_is_asked_on_cuda_exists_there(name: str, half: torch.dtype, monkeypatch) -> None:
    """With tensors that have a device and a type but no numbers: the products in half precision are CUDA's alone."""
    monkeypatch.setattr(chunks, "_l2_bytes", lambda device: chunks.L2_BYTES)
    monkeypatch.setattr("pycls.heads.head.autocast_type", lambda x: half)
    backend = TritonBackend(Recorder())
    with FakeTensorMode(allow_non_fake_inputs=True):
        cuda = torch.device("cuda", 0)
        with cuda:
            head = pycls.create_head(name, in_features=16, num_classes=3000, **options_of(name, 0, 3000))
            x, y = torch.empty(200, 16, dtype=half, requires_grad=True), torch.zeros(200, dtype=torch.int64)
        spec, plain = head.similarity.spec, name in ("subcenter_arcface", "smooth_topk")
        for chosen in (torch_backend.BACKEND,) if plain else (torch_backend.BACKEND, backend):
            monkeypatch.setattr(fused, "select", lambda *arguments, chosen=chosen: Choice(chosen, ""))
            for chunk in (0,) if name == "smooth_topk" else (0, 1000):
                head.chunk = chunk
                loss = head(x, y).loss
                assert loss.dtype is torch.float32 and loss.device == cuda
        if not plain:  # the engine of autograd needs a device: what it would call, without it
            triton_backend.try_out(backend, cuda, half, spec.kind, spec.transform.kernel)


class Broken:
    """Kernels that do not compile."""

    def __getattr__(self, name: str):
        raise RuntimeError("PTX assembly aborted due to errors")


def test_kernels_that_do_not_compile_are_named_once_and_not_used(monkeypatch, caplog) -> None:
    triton_backend._tried.cache_clear()
    monkeypatch.setattr(triton_backend.importlib, "import_module", lambda name: Broken())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # the index of a processor's device
    x, weight = torch.randn(4, 8), torch.randn(6, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = triton_backend.for_operands(ScoreSpec(), x, weight, [None], [])
            assert found == (None, "the kernels do not work on this device")
    assert [record.message.split(": ")[-1] for record in caplog.records] == ["PTX assembly aborted due to errors"]
    triton_backend._tried.cache_clear()


def test_without_triton_nothing_is_said(monkeypatch, caplog) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'triton'")

    triton_backend._tried.cache_clear()
    monkeypatch.setattr(triton_backend.importlib, "import_module", missing)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    with caplog.at_level(logging.INFO):
        assert triton_backend.for_operands(ScoreSpec(), torch.randn(4, 8), torch.randn(6, 8), [], [])[0] is None
    assert not caplog.records
    triton_backend._tried.cache_clear()


def test_what_the_kernels_are_for_and_why(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(triton_backend, "_tried", lambda *key: "kernels")
    x, weight, target = torch.randn(4, 8), torch.randn(6, 8), torch.zeros(8, dtype=torch.int64)
    ask = triton_backend.for_operands
    for features, prototypes, bias in ((x, weight, torch.zeros(6)), (x.half(), weight.half(), None)):
        assert ask(ScoreSpec(), features, prototypes, [bias, None], [target]) == ("kernels", "a CUDA device")
    for reason, bias, features, prototypes, labels in (
        ("float32 and half", None, x.double(), weight.double(), target), ("float32 and half", None, x.half(), weight, target),
        ("float32 and half", torch.zeros(6).double(), x, weight, target), ("float32 and half", None, x[:0], weight, target),
        ("not contiguous", None, x, weight.t().contiguous().t(), target), ("not contiguous", None, x, weight, target[::2]),
        ("not contiguous", torch.zeros(12)[::2], x, weight, target),
    ):  # fmt: skip
        found, why = ask(ScoreSpec(), features, prototypes, [bias], [labels])
        assert found is None and reason in why
    found, why = ask(ScoreSpec("cosine", num_centers=2), x, weight, [], [])
    assert found is None and "one centre" in why
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    found, why = ask(ScoreSpec(), x, weight, [], [])
    assert found is None and "current device" in why


def test_chunks_fit_into_the_devices_cache(monkeypatch) -> None:
    cache = SimpleNamespace(L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cache)
    device = torch.device("cuda", 0)
    chunks._l2_bytes.cache_clear()
    with FakeTensorMode():  # tensors with a device, on which nothing is

        def of(samples: int) -> Tensor:
            return torch.empty(samples, 512, device=device)

        assert chunks.chunks(1000, 1, of(256), 0) == [(0, 1000)]
        many = chunks.chunks(1_000_000, 1, of(1024), 0)
        assert many[0] == (0, 12_800) and many[-1][1] == 1_000_000
        assert chunks.chunks(1_000_000, 3, of(1024), 0)[0][1] * 3 <= 12_800
        assert chunks.chunks(10, 1, of(4), 3) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert 1024 * 100_000 < fused.KEPT_ELEMENTS_CUDA < 1024 * 1_000_000
    chunks._l2_bytes.cache_clear()


def cuda_step(name: str, half: torch.dtype | None, chunk: int) -> list[Tensor]:
    """Loss and gradients of a head on the device."""
    options = options_of(name, 0, 3000)
    head = make_head(name, 64, 3000, options, torch.float32, 0)
    batch = make_batch(name, head, options, 200, 0)
    head.chunk = chunk
    head, x, y = head.cuda().eval(), batch.features.cuda(), batch.labels.cuda()
    x = (x if half is None else x.to(half)).requires_grad_()
    with torch.autocast("cuda", dtype=half or torch.bfloat16, enabled=half is not None):
        loss = head(x, y).loss
    return [loss.detach(), *gradients_of(loss, [x, *head.parameters()])]


@needs_triton
@needs_cuda
@pytest.mark.parametrize("chunk", [0, 1024])
@pytest.mark.parametrize("half", [None, *HALVES])
@pytest.mark.parametrize("name", HEADS)
def test_on_the_device(name: str, half: torch.dtype | None, chunk: int, monkeypatch) -> None:
    """The kernels beside torch's operations, and beside themselves to the bit."""
    runs = [cuda_step(name, half, chunk) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    monkeypatch.setattr(fused, "select", lambda *arguments: Choice(torch_backend.BACKEND, ""))
    for one, other in zip(runs[0], cuda_step(name, half, chunk), strict=True):
        assert relative_error(one, other.double(), 1e-6) < (1e-4 if half is None else 4 * torch.finfo(half).eps)


@needs_triton
@needs_cuda
def test_the_kernels_are_what_runs_on_the_device(monkeypatch) -> None:
    calls: list[str] = []
    backward = TritonBackend.backward
    monkeypatch.setattr(TritonBackend, "backward", lambda self, *a: (calls.append("backward"), backward(self, *a)))
    cuda_step("arcface", torch.bfloat16, 0)
    assert calls == ["backward"]


@needs_cuda
def test_many_classes_take_less_memory_than_a_plain_head() -> None:
    samples, width, classes = 1024, 64, 300_000
    peaks = []
    for head in (pycls.create_head("arcface", in_features=width, num_classes=classes), torch.nn.Linear(width, classes)):
        module, y = head.cuda(), torch.arange(samples, device="cuda")
        x = torch.randn(samples, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = module(x, y).loss if isinstance(module, pycls.heads.Head) else torch.nn.functional.cross_entropy(module(x), y)
        out.backward()
        peaks.append(torch.cuda.max_memory_allocated())
        del head, module, x, out
    assert peaks[0] < 0.5 * peaks[1]
