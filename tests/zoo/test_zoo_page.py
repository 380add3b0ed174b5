"""docs/model_zoo.md shows the entries as they are."""

import sys
from pathlib import Path

import forked

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    done = forked.run([sys.executable, str(ROOT / "docs/make_zoo_page.py"), "--check"])
    assert done.returncode == 0, f"{done.stdout}{done.stderr}; run python docs/make_zoo_page.py"
