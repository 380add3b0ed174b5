#!/usr/bin/env python3
"""Train, test, time or describe a classifier: ``run_net.py --cfg FILE [KEY VALUE ...]``; ``-h`` shows more."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls.cli import console

if __name__ == "__main__":
    console()
