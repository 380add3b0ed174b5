"""What a newcomer reads is true: commands run and print what is shown, links lead somewhere, options exist."""

import re
from pathlib import Path

import pytest
import torch
from pages import PAGES, ROOT, Block, Workspace, blocks_of, matches, prose_of, without_installation
from PIL import Image

import pycls
from pycls.config import aliases, components, source_scan
from pycls.config.options import CORE
from pycls.engine.checkpoint.state_file import load_state, load_weights
from pycls.registry import AUXILIARIES, CRITERIA, DATASETS, HEADS, MARGINS, MODELS, SIMILARITIES

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
KEY = re.compile(r"(?<![\w./-])[A-Z][A-Z0-9_]+(?:\.[A-Z][A-Z0-9_]*)+(?![\w/]|\.[a-z])")
RUN_PAGES = [page for page in PAGES if any(block.runs for block in blocks_of(page))]


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def workspace(tmp_path: Path, fresh: bool) -> Workspace:
    for k in range(40):
        folder = tmp_path / "photos/train" / ("day" if k % 2 else "night")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + k, 32), (200 * (k % 2), 5 * k, 90)).save(folder / f"{k}.png")
    return Workspace(tmp_path, fresh)


@pytest.fixture
def fresh() -> bool:
    """Whether each command of a page starts an interpreter of its own."""
    return False


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.extra)], ids=["forked", "fresh"])
@pytest.mark.parametrize("page", RUN_PAGES, ids=page_id)
def test_commands_of_page(page: Path, workspace: Workspace) -> None:
    for block in blocks_of(page):
        if block.title is not None:
            workspace.write(block.title, block.text)
        elif block.runs:
            workspace.run_block(block)
    if page.name == "extending.md":
        check_third_party(workspace.folder)


def check_third_party(folder: Path) -> None:
    """What the files of docs/extending.md have trained: it went on after a stop, and was saved with all that is theirs."""
    log = (folder / "runs/student_t/stdout.log").read_text(encoding="utf-8")
    assert "asked to stop" in log and "continuing from epoch" in log
    state = load_state(folder / "runs/student_t/checkpoints/best.safetensors")
    assert {"head.similarity.weight", "head.similarity.log_scale"} <= state["model"].keys()
    learned = state["model"]["head.similarity.log_scale"]
    assert learned != torch.tensor(8.0).log() and torch.isfinite(learned)
    centers, _ = load_weights(folder / "runs/compact_cosface/model.safetensors")
    assert centers["head.auxiliaries.0.centers"].abs().sum() > 0
    backbone, _ = load_weights(folder / "runs/quarters/model.safetensors")
    assert backbone["backbone.layers.1.weight"].shape == (64, 144)


@pytest.mark.slow
def test_picture_of_readme_is_drawn_from_trainings(workspace: Workspace) -> None:
    draw = ["python", "examples/features/draw.py", "features.png"]
    options = ["TRAIN.DATASET", "digits", "TRAIN.IMAGES_PER_CLASS", "0", "TRAIN.BATCH_SIZE", "64", "OPTIM.MAX_EPOCH", "1"]
    code, printed = workspace.run(*draw, *options)
    assert code == 0 and printed.count("plane with") == 4, printed
    with Image.open(workspace.folder / "features.png") as picture:
        assert picture.size == (1440, 408)
    code, printed = workspace.run(*draw, *options)
    assert code == 0 and printed.count("is finished") == 4, printed


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_language_and_every_reason_a_block(page: Path) -> None:
    for block in blocks_of(page):
        assert block.kind in ("bash", "console", "python", "yaml", "text"), f"line {block.line}: a block of no language"
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks_of(page)), "a fence that is not closed, or not at the start of its line"
    assert len(re.findall(r"^<!-- not run", text, re.MULTILINE)) == sum(
        block.reason is not None for block in blocks_of(page)
    ), "a reason that no block follows"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page_id(page)}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}, link


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_options_of_page_exist(page: Path) -> None:
    text = prose_of(page)
    own = {source_scan.section_name(name) for name in re.findall(r'register\("(\w+)"\)', text)}
    unknown = set(KEY.findall(text)) - known_options()
    assert not {key for key in unknown if key.partition(".")[0] not in own}


def known_options() -> set[str]:
    """Every option of every component, those of a head by its name and by its parts; and pycls's other names."""
    known = {*CORE, *aliases.TABLE} | {key.rpartition(".")[0] for key in CORE}
    for registry in (MODELS, DATASETS):
        for name in registry.names():
            section = source_scan.section_of(registry.get(name), name)
            known |= {f"{section}.{option}" for option in components.component_options(registry, name)}
    for registry, node in ((HEADS, "HEAD"), (SIMILARITIES, "HEAD.SIMILARITY"), (MARGINS, "HEAD.MARGIN"),
                           (CRITERIA, "HEAD.CRITERION"), (AUXILIARIES, "HEAD.AUXILIARIES")):  # fmt: skip
        for name in registry.names():
            known |= {f"{node}.{option}" for option in components.component_options(registry, name)}
    return known


def test_readme_lists_every_head_once() -> None:
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    built_in = [name for name in pycls.list_heads() if HEADS.get(name).__module__.startswith("pycls.")]
    assert sorted(table) == built_in


def test_readme_table_of_figures_names_configs_that_exist() -> None:
    named = re.findall(r"`(configs/\S+\.yaml)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named and all((ROOT / name).is_file() for name in named)


def test_output_is_compared_with_wildcards() -> None:
    assert matches("a ... %\n...\nend\n", "a 1.5 %\n\nx\ny\nend\n")
    assert not matches("a ... %\nend\n", "a 1.5 %\nx\nend\n")
    assert not matches("error: no\n", "error: no such thing\n")


def test_only_the_installation_is_left_out() -> None:
    assert without_installation("pip install -e . && python x.py\n") == "python x.py\n"
    assert without_installation("pip install -e .\n").strip() == ""
    assert without_installation("pip install -e '.[test]' && python -m pytest") == "python -m pytest"


def test_a_wrong_command_or_output_fails(workspace: Workspace) -> None:
    for block in (
        Block("bash", "false\n", 1),
        Block("bash", "false | true\n", 1),
        Block("python", "raise SystemExit(3)\n", 1),
        Block("console", "$ echo one\ntwo\n", 1),
        Block("console", "$ echo error: one\nerror: one\n", 1),
    ):
        with pytest.raises(AssertionError):
            workspace.run_block(block)
