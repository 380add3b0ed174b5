"""The table of methods for long tails, and the files it runs."""

from pathlib import Path

import long_tail
import numpy as np
import pytest

from pycls import config

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*_lt/*.yaml"))


def test_groups_by_the_images_for_training() -> None:
    images, samples = np.array([500, 101, 100, 20, 19, 1]), np.array([10, 10, 10, 10, 10, 50])
    found = long_tail.accuracies(images, samples, np.array([1, 2, 3, 4, 5, 40]))
    assert found == pytest.approx({"many": 85.0, "medium": 65.0, "few": 35.0, "all": 45.0})
    assert "few" not in long_tail.accuracies(images[:4], samples[:4], samples[:4])


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
