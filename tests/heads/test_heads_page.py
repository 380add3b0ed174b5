"""docs/heads.md shows every head and part with its present formula and options."""

import sys
from pathlib import Path

import forked

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    done = forked.run([sys.executable, str(ROOT / "docs/make_heads_page.py"), "--check"])
    assert done.returncode == 0, f"{done.stdout}{done.stderr}; run python docs/make_heads_page.py"
