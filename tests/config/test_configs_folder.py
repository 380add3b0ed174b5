"""Every file under configs/: it says what it is, loads without a word, and runs, on random images."""

import re
import sys
from pathlib import Path

import forked
import pytest

from pycls import build, cli, config
from pycls.models.complexity import complexity

ROOT = Path(__file__).parents[2]
PYCLS = ("dds_baselines", "archive")
"""pycls's own: tests/config/test_pycls_configs.py says what is expected of them."""
PATHS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
OURS = [path for path in PATHS if path.split("/")[1] not in PYCLS]
PAPERS = [path for path in OURS if path.split("/")[1] in
          ("rbf_softmax", "tvmf", "lsoftmax", "smooth_topk", "mnist_features", "long_tail")]  # fmt: skip

AWARE_EPOCH = {"imagenet_lt": 1280 * 1000, "inaturalist2018": 1000 * 8142}
"""Images of an epoch of the class-aware sampler, largest class x classes; those on random images are others."""


def header(path: str) -> list[str]:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    comment = [line for line in lines if line.startswith("#")]
    assert lines[: len(comment)] == comment
    return comment


@pytest.mark.parametrize("path", OURS)
def test_the_header_ends_with_the_command(path: str) -> None:
    assert re.fullmatch(rf"# python tools/run_net\.py (--mode train )?--cfg {re.escape(path)}", header(path)[-1])


@pytest.mark.parametrize("path", PAPERS)
def test_the_header_of_a_papers_experiment(path: str) -> None:
    """Paper, published figure, and the cost: multiply-adds forward and twice as many backward, of every image; of a second
    stage, whose backbone is frozen, forward only."""
    lines = header(path)
    assert re.search(r"\(.*(20\d\d)\)", lines[0]) and any(line.startswith("# Published") for line in lines)
    cfg = config.load(str(ROOT / path), ["DATA.SYNTHETIC", "True"])
    dataset, _ = build.build_training_set(cfg)
    side, classes = build.image_size(cfg, dataset), build.num_classes(cfg, dataset)
    model = build.build_model(cfg, dataset.channels, side, classes, dataset.labels, storage=False)
    later = config.last_stage(cfg)
    images = 3 * len(dataset) * cfg.OPTIM.MAX_EPOCH
    if later is not cfg:
        build.build_model(later, dataset.channels, side, classes, dataset.labels, storage=False)
        images += AWARE_EPOCH[cfg.TRAIN.DATASET] * later.OPTIM.MAX_EPOCH
    cost = complexity(model, dataset.channels, side).flops * images
    (said,) = re.findall(r"Cost: (\S+) multiply-adds", "\n".join(lines))
    assert float(said) == pytest.approx(cost, rel=0.1)


@pytest.mark.parametrize("path", OURS)
def test_it_is_described(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--mode", "info", "--cfg", str(ROOT / path), "DATA.SYNTHETIC", "True"]) == 0
    assert "\nimages " in capsys.readouterr().out


def dry_run(path: str, folder: Path) -> None:
    """Two optimiser steps on images as small as the net takes, and the loader's batches for them."""
    cfg = config.load(str(ROOT / path))
    small = ["TRAIN.IM_SIZE", "64"] if cfg.TRAIN.IM_SIZE > 64 else []
    options = ["DATA.SYNTHETIC", "True", "TRAIN.BATCH_SIZE", "4", "TRAIN.ACCUM_STEPS", "1", "NUM_GPUS", "1", "DEVICE", "cpu",
               "DATA_LOADER.NUM_WORKERS", "0", "NUM_THREADS", "1", "PREC_TIME.WARMUP_ITER", "0", "PREC_TIME.NUM_ITER", "1",
               "OUT_DIR", str(folder / "run")]  # fmt: skip
    assert cli.main(["--mode", "time", "--cfg", str(ROOT / path), *options, *small]) == 0
    assert (folder / "run" / "time.json").is_file()


QUICK = ("mnist_features/lgm", "lsoftmax/mnist_m4", "cifar10_lt_ldam_drw", "imagenet_lt_R-10_tvmf", "EN-B0_rbf", "cifar100_svm")


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[] if any(name in p for name in QUICK) else pytest.mark.slow) for p in PATHS]
)
def test_it_trains(path: str, tmp_path: Path) -> None:
    dry_run(path, tmp_path)


def test_the_page_lists_them() -> None:
    """docs/reproduce.md is written from the headers."""
    done = forked.run([sys.executable, ROOT / "docs/make_reproduce_page.py", "--check"])
    assert done.returncode == 0, "run python docs/make_reproduce_page.py"
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\S+)` \|", page, re.MULTILINE)) == PAPERS
