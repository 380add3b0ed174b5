#!/usr/bin/env python3
"""Weights under pycls's, torchvision's or our names: ``convert_weights.py --to FORM --arch NAME IN OUT``; ``-h`` shows more."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls.run.convert import console

if __name__ == "__main__":
    console()
