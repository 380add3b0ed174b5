#!/usr/bin/env python3
"""LeNet-5 on MNIST with every head, each with its documented defaults: the test errors in docs/heads.md.

    python benchmarks/mnist_heads.py --root DATA --out runs/mnist_heads        # about 1.5 minutes per head on one core

Each head is ``configs/mnist/lenet5_softmax.yaml`` with ``HEAD.NAME`` and 3 epochs, nothing else. Finished runs are not
repeated, so the command can be stopped and restarted. Each error is written to benchmarks/results/mnist_heads.json at once.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pycls.registry import HEADS  # noqa: E402

EPOCHS = 3
TARGET = ROOT / "benchmarks/results/mnist_heads.json"


def train(name: str, root: str, out: Path, threads: int) -> dict:
    """Runs the command line; the content of result.json."""
    command = [
        sys.executable, str(ROOT / "tools/run_net.py"), "--cfg", str(ROOT / "configs/mnist/lenet5_softmax.yaml"),
        "HEAD.NAME", name, "OPTIM.MAX_EPOCH", str(EPOCHS), "OUT_DIR", str(out / name), "NUM_THREADS", str(threads),
        "DEVICE", "cpu", "TENSORBOARD", "False",
    ]  # fmt: skip
    done = subprocess.run([*command, *(["DATA.ROOT", root] if root else [])], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip() or done.stdout[-500:]}")
    return dict(json.loads((out / name / "result.json").read_text(encoding="utf-8")))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="LeNet-5 on MNIST with every head.")
    parser.add_argument("--root", default="", help="folder of the data sets (DATA.ROOT)")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_heads"), help="folder of the runs")
    parser.add_argument("--heads", nargs="*", default=HEADS.names(), help="which ones (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run")
    flags = parser.parse_args()
    errors = dict(json.loads(TARGET.read_text(encoding="utf-8"))["error"]) if TARGET.is_file() else {}
    for name in flags.heads:
        test = train(name, flags.root, flags.out, flags.threads)["test"]
        errors[name] = test["top1_err"]
        print(f"{name:20} {test['top1_err']:5.2f} %", flush=True)
        note = (f"LeNet-5, {EPOCHS} epochs, each head with its defaults, one seed, {datetime.date.today().isoformat()}; "
                "`python benchmarks/mnist_heads.py`.")  # fmt: skip
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(json.dumps({"note": note, "error": dict(sorted(errors.items()))}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
