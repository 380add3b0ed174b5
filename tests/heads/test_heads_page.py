"""docs/heads.md shows every head and part with its present formula and options."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    done = subprocess.run([sys.executable, str(ROOT / "docs/make_heads_page.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}; run python docs/make_heads_page.py"
