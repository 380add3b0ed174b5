"""tools/zoo.py, and weights of the zoo in runs."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import simplejson
import torch
from web import Site
from zoo_makers import file_of, random_model

from pycls import cli, zoo
from pycls.engine.checkpoint.state_file import load_weights
from pycls.zoo.command import main

ROOT = Path(__file__).parents[2]
RUN = ["--cfg", str(ROOT / "configs/digits/lenet5_softmax.yaml"), "DEVICE", "cpu", "NUM_THREADS", "1", "OPTIM.MAX_EPOCH", "1",
       "TENSORBOARD", "False"]  # fmt: skip
Publish = Callable[[dict[str, dict[str, Any]]], None]


def test_the_script_lists_and_shows() -> None:
    script = [sys.executable, str(ROOT / "tools/zoo.py")]
    listed = forked.run([*script, "list"])
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) == len(zoo.entries()) + 2
    assert "RegNetX-400MF" in listed.stdout and "27.38" in listed.stdout
    shown = forked.run([*script, "show", "RegNetX-400MF"])
    for words in ("https://dl.fbaipublicfiles.com/pycls/dds_baselines/160905967/", "BGR", "27.382", "MIT", "not fetched yet"):
        assert words in shown.stdout
    wrong = forked.run([*script, "show", "RegNetX-400"])
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: the Model Zoo has no weights") and not wrong.stdout


def test_download_and_verify(
    site: Site, publish: Publish, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.files["w.pyth"] = file_of(random_model(), tmp_path / "w")
    facts = {"colours": "RGB", "classes": 7}
    publish({"RegNetX-200MF": {"url": site.url("w.pyth"), **facts}, "ResNet-18": {"url": site.url("none.pth"), **facts}})
    assert main(["verify"]) == 0 and "0 in " in capsys.readouterr().out
    assert main(["verify", "ResNet-18"]) == 1 and "ResNet-18: not in the cache" in capsys.readouterr().out
    assert main(["download", "RegNetX-200MF"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path.parent == cache and path.is_file()
    assert main(["verify"]) == 0 and "RegNetX-200MF: good" in capsys.readouterr().out
    assert main(["show", "RegNetX-200MF"]) == 0 and "pinned" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["verify"]) == 1 and "is not what was fetched" in capsys.readouterr().out
    assert main(["download", "ResNet-18"]) == 2 and "404 Not Found" in capsys.readouterr().err
    site.statuses = [500] * 10
    assert main(["download", "ResNet-18"]) == 1 and "500" in capsys.readouterr().err
    logging.getLogger().handlers = [h for h in logging.getLogger().handlers if not type(h).__module__.startswith("pycls")]


def test_a_run_fine_tunes_and_tests_weights_from_the_web(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve classes there, of which ten are named, and these ten digits here."""
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    assert cli.main([*RUN, "OPTIM.MAX_EPOCH", "0", "MODEL.NUM_CLASSES", "12", "OUT_DIR", str(first)]) == 0
    site.files["w.safetensors"] = (first / "model.safetensors").read_bytes()
    words = ["TRAIN.WEIGHTS", site.url("w.safetensors") + "?key=secret", "OPTIM.MAX_EPOCH", "0", "OUT_DIR", str(tuned)]
    capsys.readouterr()
    assert cli.main([*RUN, *words]) == 0
    text = capsys.readouterr().out
    assert "head weights kept: 10 of its 12 classes by their names\n" in text
    assert f"fetching {site.url('w.safetensors')} (" in text and "secret" not in text
    before, after = load_weights(first / "model.safetensors")[0], load_weights(tuned / "model.safetensors")[0]
    assert torch.equal(after["head.similarity.weight"], before["head.similarity.weight"][:10])
    assert all(torch.equal(before[name], after[name]) for name in after if name.startswith("backbone."))

    site.files["tuned"] = (tuned / "model.safetensors").read_bytes()
    assert cli.main(["--mode", "test", *RUN, "TEST.WEIGHTS", site.url("tuned"), "OUT_DIR", str(tmp_path / "test")]) == 0
    tested = simplejson.loads((tmp_path / "test/test.json").read_text())
    assert tested["test"]["top1_err"] == simplejson.loads((tuned / "result.json").read_text())["test"]["top1_err"]
    words = ["TEST.WEIGHTS", site.url("w.safetensors"), "OUT_DIR", str(tmp_path / "test")]
    assert cli.main(["--mode", "test", *RUN, *words]) == 2
    assert "holds the weights of another model" in capsys.readouterr().err
