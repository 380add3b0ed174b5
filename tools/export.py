#!/usr/bin/env python3
"""A trained model as ONNX or as an exported program: ``export.py --cfg FILE --weights W --to onnx OUT``; ``-h`` shows more."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls.run.export import console

if __name__ == "__main__":
    console()
