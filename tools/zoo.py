#!/usr/bin/env python3
"""The Model Zoo: ``zoo.py list``, ``show NAME``, ``download NAME ...``, ``verify [NAME ...]``; ``-h`` shows more."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls.zoo.command import console

if __name__ == "__main__":
    console()
