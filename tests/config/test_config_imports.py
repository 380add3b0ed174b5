"""IMPORTS: modules of other people, wherever they keep them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycls import config
from pycls.errors import InputError
from pycls.registry import HEADS

Write = Callable[..., str]
HEAD = """\
from pycls.registry import HEADS

@HEADS.register("{name}")
def {name}(in_features: int, num_classes: int, power: int = {power}) -> None:
    '''A head from outside.'''
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules, paths and registrations of a test end with it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    entries = dict(HEADS._entries)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    HEADS._entries.clear()
    HEADS._entries.update(entries)


def yaml_with(imports: str, head: str = "outside") -> str:
    return f"IMPORTS: {imports}\nMODEL: {{TYPE: fakenet}}\nTRAIN: {{DATASET: fakeset}}\nHEAD: {{NAME: {head}}}\n"


def test_a_file_beside_the_yaml(write: Write, tmp_path: Path) -> None:
    write(HEAD.format(name="outside", power=3), "exp/outside_heads.py")
    cfg = config.load(write(yaml_with("[outside_heads]"), "exp/a.yaml"))
    assert cfg.HEAD.POWER == 3
    beside = tmp_path / "exp" / "outside_heads.py"
    assert [Path(name) for name in cfg.IMPORTS] == [beside]
    dumped = write(config.dump(cfg), "runs/a/config.yaml")
    assert config.load(dumped) == cfg


def test_a_dump_finds_it_in_another_process(write: Write) -> None:
    write(HEAD.format(name="outside", power=3), "exp/outside_heads.py")
    cfg = config.load(write(yaml_with("[outside_heads]"), "exp/a.yaml"))
    del sys.modules["outside_heads"], HEADS._entries["outside"]
    config.import_user_modules(cfg)
    assert "outside" in HEADS


def test_a_path_relative_to_the_yaml(write: Write) -> None:
    write(HEAD.format(name="outside", power=4), "lib/mine.py")
    assert config.load(write(yaml_with("[../lib/mine.py]"), "exp/a.yaml")).HEAD.POWER == 4


def test_a_module_of_a_package(write: Write) -> None:
    write("POWER = 5\n", "exp/out_package/__init__.py")
    text = "from . import POWER\nassert POWER == 5\nimport out_neighbour\n" + HEAD.format(name="outside", power=5)
    write(text, "exp/out_package/heads.py")
    write("", "exp/out_neighbour.py")
    assert config.load(write(yaml_with("[out_package.heads]"), "exp/a.yaml")).HEAD.POWER == 5
    assert "out_package.heads" in sys.modules


def test_the_current_directory_and_the_search_path(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(HEAD.format(name="outside", power=6), "here_heads.py")
    assert config.load(write(yaml_with("[here_heads]"), "exp/a.yaml")).HEAD.POWER == 6
    write(HEAD.format(name="outside2", power=7), "site/site_heads.py")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    cfg = config.load(write(yaml_with("[site_heads]", "outside2"), "exp/a.yaml"))
    assert cfg.HEAD.POWER == 7 and cfg.IMPORTS == ["site_heads"]


def test_loading_twice_and_two_folders(write: Write) -> None:
    write(HEAD.format(name="outside", power=3), "one/same_name.py")
    write(HEAD.format(name="outside", power=4), "two/same_name.py")
    first = write(yaml_with("[same_name]"), "one/a.yaml")
    assert config.load(first) == config.load(first)
    with pytest.raises(
        InputError, match=r"two/a\.yaml:1: IMPORTS: cannot import .*another module named 'same_name' is in use"
    ):
        config.load(write(yaml_with("[same_name]"), "two/a.yaml"))


def test_an_imported_model_may_be_tuned(write: Write) -> None:
    write(HEAD.format(name="outside", power=3), "exp/outside_heads.py")
    path = write(yaml_with("[outside_heads]"), "exp/a.yaml")
    assert config.load(path, ["HEAD.POWER", "9"]).HEAD.POWER == 9
    with pytest.raises(
        InputError, match=r"unknown option HEAD\.POWR of the head 'outside' \(override\); did you mean HEAD\.POWER\?"
    ):
        config.load(path, ["HEAD.POWR", "9"])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\ny = x / 0\n", r"ZeroDivisionError: division by zero \(.*bad_heads\.py:2\)"),
        (
            "import nothing_of_the_sort\n",
            r"ModuleNotFoundError: No module named 'nothing_of_the_sort' \(.*bad_heads\.py:1\)",
        ),
        ("def f(:\n", r"SyntaxError: invalid syntax \(bad_heads\.py, line 1\)"),
        (HEAD.format(name="fakehead", power=1), "ValueError: two heads are named 'fakehead'"),
    ],
)
def test_an_import_that_fails_is_one_line(write: Write, source: str, expected: str) -> None:
    write(source, "bad_heads.py")
    with pytest.raises(InputError, match=r"^a\.yaml:1: IMPORTS: cannot import 'bad_heads': " + expected) as caught:
        config.load(write(yaml_with("[bad_heads]")))
    assert "\n" not in str(caught.value)
    assert "bad_heads" not in sys.modules


def test_a_file_that_is_not_there(write: Write) -> None:
    with pytest.raises(InputError, match=r"^a\.yaml:1: IMPORTS: cannot import 'mine\.py': no such file: mine\.py$"):
        config.load(write(yaml_with("[mine.py]")))


def test_errors_in_core_options_come_before_imports(write: Write) -> None:
    write("raise SystemExit('imported')\n", "slow_heads.py")
    with pytest.raises(InputError, match=r"unknown option OPTIM\.BASE_LRR"):
        config.load(write(yaml_with("[slow_heads]") + "OPTIM: {BASE_LRR: 1}\n"))
