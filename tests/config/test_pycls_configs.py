"""The configurations of pycls's baselines and archive: all are there, load without a word, and make the published nets."""

import json
import re
from pathlib import Path

import pytest

from pycls import build, config
from pycls.models.complexity import complexity

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((Path(__file__).parent / "pycls" / "model_complexity.json").read_text())
"""pycls's dev/model_complexity.json: path -> counts for one image."""
PATHS = sorted(PUBLISHED)
BASELINES = [path for path in PATHS if "dds_baselines" in path]


def load(path: str) -> config.CfgNode:
    notices: list[str] = []
    cfg = config.load(str(ROOT / path), notify=notices.append)
    assert notices == []
    return cfg


def test_all_are_there() -> None:
    found = [path for top in ("dds_baselines", "archive") for path in (ROOT / "configs" / top).rglob("*.*")]
    assert sorted(path.relative_to(ROOT).as_posix() for path in found) == PATHS


@pytest.mark.parametrize("path", PATHS)
def test_the_net_is_the_published_one(path: str) -> None:
    """What ``--mode info`` does where the data are not there, in this process."""
    cfg = load(path)
    model = build.build_model(cfg, 3, cfg.TRAIN.IM_SIZE, cfg.MODEL.NUM_CLASSES, storage=False)
    assert complexity(model, 3, cfg.TRAIN.IM_SIZE)._asdict() == PUBLISHED[path]


@pytest.mark.parametrize("path", PATHS)
def test_header(path: str) -> None:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    comment = [line for line in lines if line.startswith("#")]
    assert lines[: len(comment)] == comment and comment[-1] == f"# python tools/run_net.py --cfg {path}"
    text = " ".join(comment)
    assert re.search(r"\(.*20\d\d\)", text) and re.search(r"error \d\d\.\d %|no error", text)


@pytest.mark.parametrize("path", BASELINES)
def test_settings_of_the_baselines(path: str) -> None:
    """By the rules that pycls states beside its Model Zoo: the learning rate is batch / 128 times 0.1, or 0.2 for
    EfficientNets; images are tested at 256 / 224 of the size they are trained at."""
    cfg = load(path)
    effnet, regnet = cfg.MODEL.TYPE == "effnet", cfg.MODEL.TYPE == "regnet"
    assert pytest.approx(cfg.TRAIN.BATCH_SIZE / 128 * (0.2 if effnet else 0.1)) == cfg.OPTIM.BASE_LR
    assert (1e-5 if effnet else 5e-5) == cfg.OPTIM.WEIGHT_DECAY
    assert (5 if regnet else 0) == cfg.OPTIM.WARMUP_EPOCHS
    assert abs(cfg.TEST.IM_SIZE - cfg.TRAIN.IM_SIZE * 256 / 224) < 1
    assert (cfg.OPTIM.LR_POLICY, cfg.OPTIM.MAX_EPOCH, cfg.NUM_GPUS) == ("cos", 100, 8)
    assert f"runs/{Path(path).stem}" == cfg.OUT_DIR


@pytest.mark.parametrize("path", [path for path in PATHS if "archive/imagenet" in path])
def test_settings_of_the_archive(path: str) -> None:
    """Goyal et al. 2017: the learning rate is 0.1 for 256 images, on any number of GPUs, 32 on each."""
    cfg = load(path)
    gpus = int(path.rpartition("gpu")[0].rpartition("_")[2])
    assert (gpus, 32 * gpus, 25 * gpus) == (cfg.NUM_GPUS, cfg.TRAIN.BATCH_SIZE, cfg.TEST.BATCH_SIZE)
    assert pytest.approx(0.1 * gpus / 8) == cfg.OPTIM.BASE_LR and cfg.BN.ZERO_INIT_FINAL_GAMMA


ORIGINALS = {
    "resnet50_rbf_8gpu": ("resnet/R-50-1x64d", ["MODEL.LOGITS_TYPE", "MODEL.RBF_SCALE", "MODEL.RBF_GAMMA"]),
    "effnet_b4_rbf_8gpu": ("effnet/EN-B4", ["MODEL.LOGITS_TYPE", "MODEL.RBF_SCALE", "MODEL.RBF_GAMMA"]),
    "effnet_b0_2020": ("effnet/EN-B0", ["EN.SE_RATIO"]),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_file_as_its_authors_wrote_it(name: str) -> None:
    notices: list[str] = []
    cfg = config.load(str(Path(__file__).parent / "pycls" / f"{name}.yaml"), notify=notices.append)
    twin, translated = ORIGINALS[name]
    assert [line.split()[1] for line in notices] == translated
    assert ("rbf_softmax" if "rbf" in name else "softmax") == cfg.HEAD.NAME
    size = cfg.TRAIN.IM_SIZE
    backbone = build.build_model(cfg, 3, size, 1000, storage=False).backbone
    published = PUBLISHED[f"configs/dds_baselines/{twin}_dds_8gpu.yaml"]
    head = backbone.feature_dim * 1000 + 1000
    assert complexity(backbone, 3, size).params + head == published["params"]
    assert complexity(backbone, 3, size).flops + head == published["flops"]
