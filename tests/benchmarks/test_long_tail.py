"""The table of methods for long tails, and the files it runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import forked
import long_tail
import pytest

from pycls import config
from pycls.engine.predictions import by_training_size

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("*_lt/*.yaml"))


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return forked.run([sys.executable, ROOT / "benchmarks/long_tail.py", *arguments], env=environment, timeout=300)


def test_accuracies_are_the_evaluations_own() -> None:
    samples, errors = [10, 10, 10, 10, 10, 50], [1, 2, 3, 4, 5, 40]
    test = {"class_samples": samples, "class_errors": errors, "top1_err": 55.0}
    groups = by_training_size(test, [500, 101, 100, 20, 19, 1])
    assert long_tail.accuracies({**test, "groups": groups}) == pytest.approx(
        {"many": 85.0, "medium": 65.0, "few": 35.0, "all": 45.0}
    )
    assert "few" not in long_tail.accuracies({**test, "groups": by_training_size(test, [20] * 6)})


def test_the_ordering_of_the_literature() -> None:
    ce = [{"many": 90.0, "few": 10.0, "all": 50.0}, {"many": 92.0, "few": 12.0, "all": 52.0}]
    good = [{"many": 80.0, "few": 30.0, "all": 60.0}, {"many": 91.0, "few": 9.0, "all": 51.0}]
    assert all(line.endswith(": kept") for line in long_tail.ordering({"ce": ce, "good": good}))
    assert long_tail.ordering({"ce": ce, "good": good, "poor": [{"many": 95.0, "few": 11.5, "all": 50.9}]}) == [
        "below cross entropy on many: MISSED by poor", "above cross entropy on few: kept",
        "above cross entropy on all: MISSED by poor",
    ]  # fmt: skip
    assert long_tail.ordering({"good": good}) == [] == long_tail.ordering({"ce": ce})


@pytest.mark.slow
@pytest.mark.skipif("PYCLS_TEST_DATA" not in os.environ, reason="Fashion-MNIST in PYCLS_TEST_DATA")
def test_the_table_over_seeds_of_fashion_mnist(tmp_path: Path) -> None:
    """Mean and spread of each method; finished runs are not run again."""
    words = ["fashion_mnist_lt", "--root", os.environ["PYCLS_TEST_DATA"], "--out", tmp_path, "--seeds", 2, "--methods", "ce",
             "tau_norm", "--options", "OPTIM.MAX_EPOCH", 2, "NUM_THREADS", 1]  # fmt: skip
    first = run(*words)
    assert first.returncode == 0, first.stderr
    assert re.search(r"fashion_mnist_lt, 2 seeds +many \(%\) +medium \(%\) +few \(%\) +all \(%\)\n", first.stdout)
    for method in ("ce", "tau_norm"):
        assert re.search(rf"^{method}( +\d+\.\d \+- \d+\.\d){{4}}$", first.stdout, re.MULTILINE), first.stdout
    assert "cross entropy on all: " in first.stdout
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    again = run(*words)
    assert again.stdout.splitlines()[2:] == first.stdout.splitlines()[2:] and len(written) == 4
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_a_method_that_is_none() -> None:
    done = run("fashion_mnist_lt", "--methods", "crt", "crtt")
    assert done.returncode == 2 and "--methods are of balanced_softmax, ce, crt" in done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_file_says_what_it_is(path: Path) -> None:
    cfg = config.load(str(path))
    text = path.read_text(encoding="utf-8")
    assert f"# python tools/run_net.py --cfg configs/{path.parent.name}/{path.name}" in text
    assert cfg.DATA.LONG_TAIL.PROFILE == "exponential" and cfg.DATA.LONG_TAIL.IMBALANCE == 100
    later = config.last_stage(cfg)
    second = {
        "crt": ("softmax", "class_balanced"), "lws": ("lws", "class_balanced"), "tau_norm": ("softmax", "instance"),
        "ncm": ("", "instance"), "tvmf_cosloss": ("cosloss", "class_aware"),
    }.get(path.stem)  # fmt: skip
    assert (later is cfg) == (second is None)
    assert second is None or second == (later.HEAD.NAME, later.TRAIN.SAMPLER)
