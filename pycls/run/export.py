"""A trained model for programs without pycls: images in, logits out, as ONNX or as a program of ``torch.export``.

The graph takes float32 images [N, C, H, W], normalised as in training, for any N, and gives logits [N, K]. It is compared
with the model on random images before the file gets its name.
"""

import argparse
import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from pycls import build, config, zoo
from pycls.errors import InputError, RunError
from pycls.models.classifier import Classifier
from pycls.models.pretrained import load_into
from pycls.run import setup
from pycls.runtime import pipe
from pycls.runtime.files import reason_of
from pycls.runtime.log import setup_logging

FORMATS = ("onnx", "torch.export")
TOLERANCE = 1e-4  # of the largest logit, or of 1
_BATCHES = (1, 3)  # other than the 2 that is traced

Runner = Callable[[Tensor], Tensor]


class Logits(nn.Module):
    """A classifier without labels: images float [N, C, H, W] -> logits [N, K]."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def export(model: Classifier, channels: int, size: int, out: str | Path, to: str) -> float:
    """Writes a model to a file, and compares the file with the model on random images.

    Args:
        model: is used in evaluation mode, on the CPU.
        channels: of an image.
        size: side of an image in pixels.
        out: the file; its folder is made if need be.
        to: one of ``FORMATS``.

    Returns:
        The largest difference of a logit, as a share of the largest logit (or of 1, if that is larger).

    Raises:
        InputError: packages for it are missing.
        RunError: the model cannot be expressed so, or the file differs by more than 1e-4; nothing is written then.
    """
    out, logits = Path(out), Logits(model.cpu().eval())
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    save, load = (_save_onnx, _load_onnx) if to == "onnx" else (_save_program, _load_program)
    _check_packages(("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
            path = Path(folder) / out.name
            with torch.inference_mode(False), torch.no_grad():
                save(_trace(logits, images), images, path)
            difference = _difference(logits, load(path), images)
            if not difference <= TOLERANCE:
                raise RunError(f"the {to} file differs from the model by {difference:.1e}, more than {TOLERANCE:g}; not kept")
            for file in Path(folder).iterdir():  # one, or two where the weights are too large for one
                os.replace(file, out.parent / file.name)
    except OSError as error:
        raise RunError(f"cannot write {out}: {reason_of(error, out.parent)}") from error
    return difference


def _trace(logits: Logits, images: Tensor) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(logits, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    except Exception as error:  # whatever a module of somebody's does that a graph cannot express
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunError(f"{type(logits.model.backbone).__name__} with its head cannot be exported: {reason}") from error


def _save_onnx(program: torch.export.ExportedProgram, images: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on its own parts
        onnx = torch.onnx.export(
            program, (images,), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
        )
    assert onnx is not None
    onnx.save(path)


def _load_onnx(path: Path) -> Runner:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _save_program(program: torch.export.ExportedProgram, images: Tensor, path: Path) -> None:
    with open(path, "wb") as file:
        torch.export.save(program, file)


def _load_program(path: Path) -> Runner:
    with open(path, "rb") as file:
        module: Any = torch.export.load(file).module()
    return lambda images: module(images)


def _difference(logits: Logits, run: Runner, images: Tensor) -> float:
    worst = 0.0
    for n in _BATCHES:
        batch = torch.randn(n, *images.shape[1:], generator=torch.Generator().manual_seed(n))
        with torch.inference_mode():
            expected = logits(batch)
            scale = max(1.0, expected.abs().max().item())
            difference = (run(batch) - expected).abs().max().item() / scale
        worst = max(worst, difference) if difference == difference else difference
    return worst


def _check_packages(names: Sequence[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(f"ONNX needs the package {name}: pip install 'pycls-heads[export]'") from None


def build_trained(cfg: CfgNode, source: str) -> tuple[Classifier, int, int]:
    """The model of a configuration with its weights; channels and side of its images.

    Args:
        cfg: the tree.
        source: weights as for TEST.WEIGHTS; empty for OUT_DIR's best.
    """
    cfg = config.last_stage(cfg)
    weights = zoo.load(source or cfg.TEST.WEIGHTS or setup.best_in(cfg))
    channels, size, classes = build.input_of(cfg)
    model = build.build_model(cfg, channels, size, classes)
    load_into(model, weights)
    return model, channels, size


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 it cannot be done, 2 what was given cannot work."""
    parser = argparse.ArgumentParser(prog="export.py", description="Writes a trained model as ONNX or as an exported program.")
    parser.add_argument("--cfg", metavar="FILE", required=True, help="the configuration, such as OUT_DIR/config.yaml")
    parser.add_argument("--weights", metavar="W", default="", help="a file, a URL or a name of the Model Zoo; OUT_DIR's best")
    parser.add_argument("--to", choices=FORMATS, default="onnx", help="default: onnx")
    parser.add_argument("out", metavar="OUT", help="the file to write")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="options that win over the file's: KEY VALUE ...")
    flags = parser.parse_args(argv)
    try:
        cfg = config.load(flags.cfg, flags.overrides)
        setup_logging()
        difference = export(*build_trained(cfg, flags.weights), flags.out, flags.to)
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f"wrote {flags.out}; largest difference to the model on random images: {difference:.1e}")
    return 0


def console() -> None:
    """The script."""
    sys.exit(pipe.run(main))
