#!/usr/bin/env python3
"""A copy of a folder of images, resized to a short side: ``prepare_data.py SOURCE TARGET [--size 256]``; ``-h`` shows more."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls.data.images.prepare import console

if __name__ == "__main__":
    console()
