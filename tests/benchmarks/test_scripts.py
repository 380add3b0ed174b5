"""Every benchmark runs, in a tiny form, and says what it should; nothing here looks at a time."""

import copy
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import checkpoint
import class_parallel
import esf
import forked
import heads
import loading
import photographs
import pytest
import torch
import train_step
from common import Measured, quartiles, side_by_side, table, verdict
from head_entries import QUICK, SIZES, Ours, Plain, Problem, entries
from head_memory import memory_of
from loading_peers import PEERS, installed
from train_cases import CASES, COMPILED, GPU_CASES

import pycls

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Calls a benchmark as its command line does, in this process, and gives what it prints."""
    threads = torch.get_num_threads()

    def call(module: ModuleType, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        module.main()
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


def run(script: str, *arguments: str) -> str:
    """The same in a separate process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = forked.run([sys.executable, ROOT / "benchmarks" / script, *arguments], env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.extra
@pytest.mark.parametrize("name", CASES)
def test_train_step(name: str, main: Callable[..., str]) -> None:
    text = main(train_step, "--quick", "--only", name)
    for row in ("bare loop", "ours", "arithmetic alone"):
        assert f"\n{row} " in text
    assert ">= 0.97" in text and "img/s" in text
    timm = name != "lenet5" and importlib.util.find_spec("timm") is not None
    assert ("\ntimm, its loader " in text) is ("\ntimm, a loader of our kind " in text) is timm


@pytest.mark.slow
@pytest.mark.parametrize("name", GPU_CASES)
def test_train_step_of_a_gpu(name: str, main: Callable[..., str]) -> None:
    text = main(train_step, "--quick", "--eager", "--only", name)
    assert "\nours " in text and (">= 0.98" in text) is (name == "resnet50") and "compiled" not in text


@pytest.mark.slow
def test_both_sides_are_compiled_and_in_bf16() -> None:
    """As on a GPU, of a net that is quickly compiled."""
    lenet5 = CASES["lenet5"].tiny()
    rows = train_step.timings(replace(lenet5, overrides=(*CASES["lenet5"].overrides, *COMPILED)), 1, torch.device("cpu"), False)
    assert [row[0] for row in rows] == ["bare loop", "ours", "arithmetic alone"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
@pytest.mark.parametrize("module", [train_step, loading, checkpoint, heads])
def test_no_gpu_is_said_in_a_line(module: ModuleType, main: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(module, "--quick", "--device", "cuda")
    assert stop.value.code == 2 and "--device cuda: this PyTorch finds no GPU" in capsys.readouterr().err


@pytest.mark.extra
def test_train_step_by_step(main: Callable[..., str]) -> None:
    text = main(train_step, "--quick", "--by-step", "--only", "lenet5")
    assert "1 rounds, each a step on one batch in turn" in text
    assert re.search(r"^ours +\S+ \S+ +\S+ +\d\.\d+ +bare loop", text, re.MULTILINE), text


@pytest.mark.extra
def test_train_step_without_timm(main: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    text = main(train_step, "--quick", "--only", "resnet20")
    assert "timm is not installed" in text and "\ntimm, " not in text and "\nours " in text


def test_timms_step_is_a_step() -> None:
    """Without weight decay, which spares biases and batch norm there, its loop makes of the same batches what any does."""
    pytest.importorskip("timm")
    from timm_step import TimmLoop

    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(0, 5, (4,))) for _ in range(3)]
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Flatten(), torch.nn.Linear(216, 5))
    plain = copy.deepcopy(net)
    TimmLoop(net, lambda number: batches, 3, lr=0.1, weight_decay=0.0).epoch()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for images, labels in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    torch.testing.assert_close(dict(net.named_parameters()), dict(plain.named_parameters()))


def test_timms_net_is_ours() -> None:
    timm = pytest.importorskip("timm")
    ours, theirs = pycls.create_model("ResNet-18", 10), timm.create_model("resnet18", num_classes=10)
    assert sorted(p.shape for p in ours.parameters()) == sorted(p.shape for p in theirs.parameters())


@pytest.mark.extra
def test_checkpoint(main: Callable[..., str]) -> None:
    text = main(checkpoint, "--quick")
    rows = "pycls: the training loop is blocked", "until written to disk", "copying the tensors only", "torch.save + fsync"
    for row in rows:
        assert f"\n{row} " in text
    assert "<= 0.08" in text


@pytest.mark.extra
def test_esf(main: Callable[..., str]) -> None:
    text = main(esf, "--quick", "--k", "3", "--tau", "0.5")
    assert "k 3, 40 classes, batch 8" in text
    for row in ("summation, float32", "paper's derivatives", "tau 0.5: pycls", "tau 0.001: pycls"):
        assert row in text


@pytest.mark.extra
def test_heads_has_every_head(main: Callable[..., str]) -> None:
    text = main(heads, "--quick", "--no-peers", "--busy")
    rows = [line.split("  ")[0] for line in text.splitlines()]
    for name in ["linear", "matrix products", *pycls.list_heads()]:
        assert name in rows, f"no row for {name}"


@pytest.mark.extra
def test_loading() -> None:
    text = run("loading.py", "--quick", "--peers", "timm")
    for part in ("train, 1 core", "eval, 1 core"):
        assert part in text
    for row in ("torchvision ImageFolder (PIL)", "torchvision v2 (tensor)", "pycls", "pycls, Pillow", "decode only"):
        assert text.count(f"\n{row} ") == 2, row


@pytest.mark.extra
def test_a_device_that_decodes(tmp_path: Path) -> None:
    """What loading.py runs on a GPU, with a CPU in its place, on a folder that photographs.py lays out."""
    text = run("photographs.py", str(tmp_path / "set"), "--images", "5")
    assert "5 files, 5 drawn pictures" in text
    photos = tmp_path / "set" / "drawn"
    assert photographs.lay_out(photos, tmp_path / "again", 7).startswith("5 photographs, ")
    assert [len(list((tmp_path / "again" / part / "photos").iterdir())) for part in ("train", "val")] == [7, 7]
    for train in (True, False):
        passes = loading.on_device(tmp_path / "set", 2, 0, train, "cpu")
        assert loading.seconds(passes, 0, 4 if train else 5, "cpu") > 0


@pytest.mark.slow
def test_loading_beside_all_that_is_installed() -> None:
    text = run("loading.py", "--quick")
    for name in PEERS:
        assert text.count(f"\n{name} ") == 2 or f"{name} is left out: " in text, text


def test_peers_that_are_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("loading_peers.PEERS", {"X": ("no_such_module", PEERS["timm"][1]), "Y": ("json", PEERS["timm"][1])})
    assert list(installed(["X", "Y"])) == ["Y"]
    assert capsys.readouterr().out == "X is left out: No module named 'no_such_module'\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_that_a_gpu_measures(tmp_path: Path) -> None:
    """Every command runs, on the CPU; but decoding on a GPU is refused there, after which the others go on."""
    done = subprocess.run(["bash", str(ROOT / "benchmarks/gpu.sh"), str(tmp_path), "--quick"], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": sys.executable}, check=False, timeout=800)  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "summary.txt").read_text(encoding="utf-8")
    assert re.findall(r"^([\w-]+): (?!ok)", summary, re.MULTILINE) == ["waits_gpu"], summary
    assert "gpu needs a CUDA GPU" in (tmp_path / "waits_gpu.txt").read_text(encoding="utf-8")
    assert (tmp_path / "waits_auto/time.json").is_file() and (tmp_path / "cifar100.json").is_file()


@pytest.mark.extra
@linux
def test_heads_memory_of_a_process_each() -> None:
    text = run("heads.py", "--quick", "--heads", "arcface", "--no-peers", "--memory")
    assert "extra MB" in text and text.count("\narcface ") == 2


@pytest.mark.slow
@linux
def test_heads_step_of_a_million_classes() -> None:
    text = run("heads.py", "--quick", "--size", "million")
    assert "\nlinear " in text and "\narcface " in text and "<= 12 GB" in text


@pytest.mark.slow
@linux
def test_memory_of_classes_shared_out() -> None:
    """Some 230 MB of prototypes, gradients and momentum are sharded; what every process has besides stays."""
    text = run("class_parallel.py", "--classes", "150000", "--dim", "128", "--batch", "4", "--processes", "1", "2")
    one, two = (int(line.split("|")[2]) for line in text.splitlines()[2:])
    assert 90 <= one - two <= 140


@pytest.mark.slow
@linux
def test_memory_of_a_checkpoint_in_parts() -> None:
    """41 MB of prototypes and momentum."""
    rows = run("checkpoint_parts.py", "--classes", "40000", "--dim", "128").splitlines()[4:]
    gathered, alone, *parts = (int(row.split("|")[3]) for row in rows)
    assert gathered > 75 and alone < 8 and len(parts) == 2 and all(part < 35 for part in parts)


def test_model_of_classes_shared_out(main: Callable[..., str]) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in main(class_parallel, "--model").splitlines()[2:]]
    table = {(classes, int(ranks), rate): (float(size), float(products)) for classes, ranks, rate, size, products, _ in rows}
    assert len(table) == 4 * 4 * 2
    # 12 bytes of a number: prototypes, gradient, momentum; four products of 2 N K / R D operations at 12 teraflops
    assert table["29,000,000", 64, "1"][0] == pytest.approx(12 * 29e6 * 512 / 64 / 1e9, abs=0.1)
    assert table["100,000,000", 1024, "1"][1] == pytest.approx(4 * 2 * 64 * 100e6 * 512 / 12e12 * 1e3, rel=0.01)


def test_a_process_of_its_own_measures_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def start(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, '{"extra": 1, "peak": 2}\n', "")

    monkeypatch.setattr(subprocess, "run", start)
    asked = heads.options()
    arguments = asked.parse_args(["--size", "many", "--dtype", "bf16", "--threads", "2"])
    assert memory_of("arcface", entries(with_peers=False)["arcface"], SIZES["many"], arguments) == (1, 2)
    again = asked.parse_args(commands[0][2:])
    assert (again.memory_of, again.size, again.dtype, again.threads) == ("arcface", "many", "bf16", 2)


def test_heads_refuses_an_unknown_head(main: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(heads, "--quick", "--heads", "arcfase")
    assert stop.value.code == 2 and "there is no arcfase" in capsys.readouterr().err


@pytest.fixture
def clock() -> Iterator[object]:
    """A clock on which a call of job ``x`` takes ``x.cost`` times a factor that drifts from call to call."""
    now = [1.0]

    def seconds(job: Costly, calls: int) -> float:
        now[0] *= 1.001
        return float(job.cost) * calls * now[0]

    return seconds


class Costly:
    def __init__(self, cost: float) -> None:
        self.cost = cost


def test_ratios_are_of_neighbours(clock: object) -> None:
    jobs = {"plain": Costly(2.0), "dear": Costly(3.0)}
    found = side_by_side(jobs, {"dear": "plain"}, rounds=6, clock=clock, least_s=0.0)  # type: ignore[arg-type]
    assert found["dear"].ratio == pytest.approx(1.5, rel=2e-3), "a drift of the machine must not show"
    assert len(found["plain"].seconds) == len(found["dear"].ratios) == 6 and not found["plain"].ratios


def test_quartiles_and_tables() -> None:
    assert quartiles([5.0, 1.0, 2.0, 3.0, 4.0]) == (2.0, 4.0)
    assert quartiles([3.0, 1.0]) == (1.0, 3.0)
    assert Measured([1.0], [3.0, 1.0, 2.0]).ratio == 2.0
    assert verdict(1.2, 1.25) == ("<= 1.25", "kept") and verdict(0.9, 0.97, at_least=True) == (">= 0.97", "MISSED")
    assert table(["", "s"], [["a", "10"], ["bcd", "1"]]) == "      s\na    10\nbcd   1"


def test_goals_are_the_heads_own() -> None:
    known = entries()
    assert heads.goal_of("arcface", known["arcface"], SIZES["small"]) == 1.25
    assert heads.goal_of("smooth_topk", known["smooth_topk"], SIZES["small"]) == 1.6
    assert heads.goal_of("hard_topk", known["hard_topk"], SIZES["small"]) is None
    assert heads.goal_of("hard_topk", known["hard_topk"], SIZES["many"]) == 1.2
    assert heads.goal_of("arcface", known["arcface"], SIZES["wide"]) is None


def test_a_head_and_the_plain_one_do_the_same_work() -> None:
    plain, ours = (Problem(kind, QUICK, "cpu", None) for kind in (Plain(QUICK, "cpu"), Ours("softmax", QUICK, "cpu", {})))
    ours.module.head.weight.data.copy_(plain.module.linear.weight)
    ours.module.head.bias.data.copy_(plain.module.linear.bias)
    for problem in (plain, ours):
        problem.call()
    torch.testing.assert_close(ours.x.grad, plain.x.grad)
    torch.testing.assert_close(ours.module.head.weight.grad, plain.module.linear.weight.grad)
    assert plain.bytes == 4 * (4 * 8 + 12 * 8 + 12) + 8 * 4
