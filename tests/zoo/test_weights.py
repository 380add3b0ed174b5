"""Weights by name, URL and file into models: fetched, pinned, verified, turned to RGB, with their head or a new one."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from web import Site
from zoo_makers import SIDE, Calls, file_of, random_model

import pycls
from pycls import zoo
from pycls.engine.checkpoint.state_file import save_weights
from pycls.errors import InputError, RunError
from pycls.models import create_model
from pycls.models.pretrained import load_into
from pycls.models.weight_names import from_ours, to_ours
from pycls.run.convert import main as convert
from pycls.runtime.cache import place_of

NAME = "RegNetX-200MF"
Publish = Callable[[dict[str, dict[str, Any]]], None]
IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def logits(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.inference_mode():
        return model.eval()(images).logits


@pytest.fixture
def published(site: Site, publish: Publish, tmp_path: Path) -> Any:
    """The model whose weights, for BGR, the zoo has under its name."""
    model = random_model(NAME)
    site.files["a/w.pyth"] = file_of(model, tmp_path / "w.pyth", bgr=True)
    publish({NAME: {"url": site.url("a/w.pyth"), "colours": "BGR", "classes": 7, "data": "ImageNet-1k"}})
    return model


def test_by_name_as_pycls_spells_it(published: nn.Module, site: Site) -> None:
    expected = logits(published)
    for model in (
        pycls.create_model(NAME, 7, pretrained=True, image_size=SIDE),
        pycls.models.regnetx("200MF", pretrained=True, num_classes=7, image_size=SIDE),
        create_model(NAME, 7, pretrained=site.url("a/w.pyth"), image_size=SIDE),
    ):
        assert torch.equal(logits(model), expected)
    assert len(site.requests) == 1, "the second comes from the cache"


def test_the_published_net_sees_bgr_as_ours_sees_rgb(published: nn.Module, tmp_path: Path) -> None:
    theirs = random_model(NAME, seed=1)
    content = torch.load(tmp_path / "w.pyth", weights_only=True)
    theirs.load_state_dict(to_ours(content["model_state"], theirs, "pycls"))
    assert torch.allclose(logits(theirs, IMAGES.flip(1)), logits(published), atol=1e-6)
    assert not torch.allclose(logits(theirs), logits(published), atol=1e-2)


@pytest.mark.parametrize(("dataset", "colours"), [("imagenet", "BGR"), ("cifar10", "RGB"), (None, None)])
def test_a_checkpoint_says_itself_what_it_was_trained_on(
    tmp_path: Path, dataset: str | None, colours: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    about = {"cfg": f"TRAIN:\n  DATASET: {dataset}\n"} if dataset else {}
    file_of(random_model(), tmp_path / "w.pyth", **about)
    assert zoo.load(tmp_path / "w.pyth").colours == colours
    load_into(random_model(), zoo.load(tmp_path / "w.pyth"))
    assert ("RGB is assumed" in caplog.text) is (colours is None)


def test_the_zoos_weights_for_pycls_and_back(published: nn.Module, site: Site, tmp_path: Path) -> None:
    """An entry says what its weights want: by name to ours, and to pycls's again as they were published."""
    theirs = torch.load(tmp_path / "w.pyth", weights_only=True)["model_state"]
    flags = ["--arch", NAME]
    assert convert(["--to", "ours", *flags, NAME, str(tmp_path / "ours.safetensors")]) == 0
    other = random_model(seed=2)
    load_into(other, zoo.load(tmp_path / "ours.safetensors"))
    assert torch.equal(logits(other), logits(published))
    for source in (NAME, str(tmp_path / "ours.safetensors")):
        out = tmp_path / "again.pyth"
        assert convert(["--to", "pycls", *flags, source, str(out)]) == 0
        again = torch.load(out, weights_only=True)["model_state"]
        assert all(torch.equal(again[name], theirs[name]) for name in theirs), source


def test_ours_torchvisions_and_pyclss_are_told_apart(tmp_path: Path) -> None:
    model = random_model("ResNet-18")
    for form in ("pycls", "torchvision"):
        file_of(model, tmp_path / f"{form}.pth", form)
    save_weights(tmp_path / "ours.safetensors", model.state_dict(), {})
    for name in ("pycls.pth", "torchvision.pth", "ours.safetensors"):
        other = random_model("ResNet-18", seed=3)
        load_into(other, zoo.load(tmp_path / name))
        assert torch.equal(logits(other), logits(model)), name


def test_torchvisions_own_state_dict(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is the independent implementation")
    torch.manual_seed(0)
    theirs = models.resnet18(num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = create_model("ResNet-18", 7, pretrained=str(tmp_path / "w.pth"), image_size=SIDE)
    torch.testing.assert_close(logits(ours), theirs(IMAGES), rtol=1e-5, atol=1e-5)


def test_names_of_the_densenet_files_on_the_web(tmp_path: Path) -> None:
    """norm.1 for norm1, and no counts of batches."""
    model = random_model("DenseNet-121")
    file_of(model, tmp_path / "new.pth", "torchvision")
    new = torch.load(tmp_path / "new.pth", weights_only=True)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in new.items()
           if not key.endswith("num_batches_tracked")}  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    other = random_model("DenseNet-121", seed=1)
    load_into(other, zoo.load(tmp_path / "old.pth"))
    assert torch.equal(logits(other), logits(model))


def test_names_of_the_vit_files_on_the_web(tmp_path: Path) -> None:
    """mlp.linear_1 for mlp.0. torchvision itself reads both."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is the independent implementation")
    torch.manual_seed(0)
    theirs = models.VisionTransformer(SIDE, 16, 2, 4, 32, 64, num_classes=7).eval()
    nn.init.normal_(theirs.heads.head.weight)
    old = {re.sub(r"mlp\.([03])\.", lambda m: f"mlp.linear_{1 if m[1] == '0' else 2}.", key): value
           for key, value in theirs.state_dict().items()}  # fmt: skip
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in old
    torch.save(old, tmp_path / "old.pth")
    ours = create_model("vit", 7, pretrained=str(tmp_path / "old.pth"), image_size=SIDE, ln_eps=1e-6, num_layers=2,
                        num_heads=4, hidden_dim=32, mlp_dim=64)  # fmt: skip
    torch.testing.assert_close(logits(ours), theirs(IMAGES), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"was trained with LN.EPS 1e-06, and the model has 1e-05: set it so"):
        create_model("vit", 7, pretrained=str(tmp_path / "old.pth"), image_size=SIDE, num_layers=2, num_heads=4,
                     hidden_dim=32, mlp_dim=64)  # fmt: skip


def test_another_number_of_classes_keeps_the_backbone(published: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pycls"):
        model = create_model(NAME, 3, pretrained=True, image_size=SIDE)
    assert "head re-initialised because it has 7 classes, and there are 3 now" in caplog.text
    with torch.inference_mode():
        assert torch.equal(model.eval().features(IMAGES), published.features(IMAGES))  # type: ignore[operator]
    assert logits(model).shape == (2, 3) and model.head.similarity.weight.std() > 0


def test_another_head_keeps_the_backbone(published: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pycls"):
        model = create_model(NAME, 7, "cosface", pretrained=True, image_size=SIDE)
    assert "head re-initialised (different head type)" in caplog.text
    with torch.inference_mode():
        assert torch.equal(model.eval().features(IMAGES), published.features(IMAGES))  # type: ignore[operator]


@pytest.mark.parametrize("new_head", [False, True])
@pytest.mark.parametrize("cfg", [None, "MODEL: {LOGITS_TYPE: rbf_logit}\nTRAIN: {DATASET: imagenet}"])
def test_the_rbf_softmax_repositorys_files(tmp_path: Path, cfg: str | None, new_head: bool, caplog: Any) -> None:
    model, path = create_model(NAME, 7, "rbf_softmax", image_size=SIDE).eval(), tmp_path / "w.pyth"
    state = from_ours(model.state_dict(), model, "pycls") | {"head.fc.bias": torch.full((7,), float("nan"))}
    if cfg is not None:
        state["stem.conv.weight"] = state["stem.conv.weight"].flip(1)
    torch.save(state if cfg is None else {"epoch": 1, "model_state": state, "cfg": cfg}, path)
    loaded = create_model(NAME, 7, "rbf_softmax", image_size=SIDE)
    with caplog.at_level(logging.INFO, "pycls"):
        load_into(loaded, zoo.load(path), new_head)
    assert torch.equal(logits(loaded.eval()), logits(model)) and "head.fc.bias is dropped" in caplog.text


def test_a_linear_head_is_no_rbf_softmax(published: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file_of(random_model(), tmp_path / "w.pyth", cfg="MODEL: {NUM_CLASSES: 7}\nTRAIN: {DATASET: imagenet}")
    for source in (tmp_path / "w.pyth", NAME):
        model = create_model(NAME, 7, "rbf_softmax", image_size=SIDE)
        with pytest.raises(InputError, match=r"it has head\.similarity\.bias"):
            load_into(model, zoo.load(source))
        before = model.head.similarity.weight.detach().clone()
        with caplog.at_level(logging.INFO, "pycls"):
            load_into(model, zoo.load(source), new_head=True)
        assert torch.equal(model.head.similarity.weight, before) and "head re-initialised" in caplog.text
        caplog.clear()


def test_where_the_head_must_fit_it_must(published: nn.Module) -> None:
    words = rf"{NAME} holds the weights of another model: 2 .*its head\.similarity\.bias is \[7\], not \[3\]"
    with pytest.raises(InputError, match=words):
        load_into(random_model(NAME, 3), zoo.load(NAME))


def test_weights_of_other_nets(tmp_path: Path) -> None:
    path = tmp_path / "w.pyth"
    file_of(random_model(), path)
    with pytest.raises(InputError, match=r"w\.pyth: these weights are for another model, or not in pycls's names: missing s"):
        load_into(random_model("RegNetX-400MF"), zoo.load(path), new_head=True)
    with pytest.raises(InputError, match=r"w\.pyth: these weights are for another model"):
        load_into(random_model("ResNet-18"), zoo.load(path))
    with pytest.raises(InputError, match=r"w\.pyth holds the weights of another model"):
        load_into(create_model("lenet5", 7), zoo.load(path))
    file_of(random_model(), path, cfg="TRAIN: {DATASET: imagenet}")
    with pytest.raises(InputError, match=r"stem\.conv\.weight is \[32, 3, 3, 3\] and should be \[32, 1, 3, 3\]"):
        load_into(random_model(in_channels=1), zoo.load(path))
    save_weights(tmp_path / "ours", random_model().state_dict(), {})
    with pytest.raises(InputError, match="ours holds the weights of another model"):
        load_into(random_model("RegNetX-400MF"), zoo.load(tmp_path / "ours"), new_head=True)


def test_numbers_that_the_weights_want(published: nn.Module, publish: Publish, site: Site) -> None:
    publish({NAME: {"url": site.url("a/w.pyth"), "colours": "RGB", "classes": 7, "options": {"bn_eps": 0.001}}})
    model = create_model(NAME, 7, pretrained=True, image_size=SIDE)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.001}
    with pytest.raises(InputError, match=rf"{NAME} was trained with BN\.EPS 0\.001, and the model has 1e-05: set it so"):
        load_into(random_model(NAME), zoo.load(NAME))


# --- the cache and its lock file


def test_the_first_download_pins_what_comes_later(published: nn.Module, site: Site, cache: Path, tmp_path: Path) -> None:
    url = site.url("a/w.pyth")
    digest = hashlib.sha256(site.files["a/w.pyth"]).hexdigest()
    path = zoo.fetch(url)
    assert path.parent == cache and zoo.pins() == {url: digest} == json.loads((cache / "weights.lock").read_text())
    path.unlink()
    site.files["a/w.pyth"] = file_of(random_model(seed=1), tmp_path / "x")
    with pytest.raises(RunError, match=rf"should be {digest} \(pinned in .*weights\.lock when it was first fetched\)"):
        zoo.fetch(url)
    assert sorted(os.listdir(cache)) == ["weights.lock"]


def test_what_the_publisher_says_is_believed_first(published: nn.Module, site: Site, cache: Path) -> None:
    url, digest = site.url("a/w.pyth"), hashlib.sha256(site.files["a/w.pyth"]).hexdigest()
    with pytest.raises(RunError, match="should be 00000000; nothing of it was kept"):
        zoo.fetch(url, "0" * 8)
    assert os.listdir(cache) == [] and zoo.pins() == {}
    assert zoo.fetch(url, digest[:8]).is_file() and zoo.pins() == {url: digest}


def test_a_file_that_changes_in_the_cache_is_refused(published: nn.Module, cache: Path) -> None:
    path = zoo.fetch(zoo.find(NAME).url)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=rf"{path} is not what was fetched: its sha256 .* remove it to have it fetched again"):
        zoo.load(NAME)


@pytest.mark.parametrize("content", [b"", b"<html>please log in</html>", b"x" * 5000])
def test_what_are_no_weights_is_not_kept(site: Site, cache: Path, content: bytes) -> None:
    site.files["w.pyth"] = content
    with pytest.raises(RunError, match="it is damaged, or no file of weights") as error:
        zoo.load(site.url("w.pyth"))
    assert "\n" not in str(error.value) and os.listdir(cache) == []


def test_code_from_the_web_is_refused_and_not_kept(site: Site, cache: Path, tmp_path: Path) -> None:
    torch.save({"model_state": Calls(os.system, f"touch {tmp_path / 'was_here'}")}, tmp_path / "w")
    site.files["w.pyth"] = (tmp_path / "w").read_bytes()
    with pytest.raises(InputError, match=rf"^{site.address}w\.pyth is refused: it asks to run \w+\.system when it is read"):
        zoo.load(site.url("w.pyth"))
    assert os.listdir(cache) == [] and not (tmp_path / "was_here").exists()


def test_a_lock_file_that_is_none(published: nn.Module, cache: Path) -> None:
    cache.mkdir(parents=True)
    for content in ("{", "[]", '{"https://x": 3}', '{"https://x": "12"}'):
        (cache / "weights.lock").write_text(content)
        with pytest.raises(InputError, match=r"weights\.lock is damaged"):
            zoo.load(NAME)


def test_a_file_that_was_fetched_and_not_pinned_is_looked_at_again(published: nn.Module, cache: Path) -> None:
    """Killed between the two."""
    cache.mkdir(parents=True)
    url = zoo.find(NAME).url
    place_of(url, cache).write_bytes(b"not weights at all")
    with pytest.raises(RunError, match="remove it to have it fetched again"):
        zoo.load(NAME)


# --- what is asked for


def test_a_file_goes_before_a_name(published: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / NAME, random_model().state_dict(), {"mine": True})
    assert zoo.load(NAME).about == {"mine": True} and not site.requests


def test_no_such_thing(published: nn.Module, site: Site) -> None:
    for source, words in (
        ("none.safetensors", r"^no such file: none\.safetensors$"),
        ("RegNetX-20MF", rf"^no such file: RegNetX-20MF; and .* no weights 'RegNetX-20MF'; did you mean '{NAME}'"),
        (site.url("none.pyth"), r"the server answers 404 Not Found$"),
        ("ftp://host/w.pyth", "a URL starts with https://"),
        ("http://[::1/w.pyth", "a URL starts with https://"),
    ):
        with pytest.raises(InputError, match=words):
            zoo.load(source)


@pytest.mark.parametrize("name", ["../../x", "/etc/nonesuch", "..", "a/../../b", "%2e%2e", "~/x", "x\0y"])
def test_a_name_leads_nowhere(published: nn.Module, cache: Path, name: str) -> None:
    with pytest.raises(InputError):
        zoo.load(name)
    assert not cache.exists()


@pytest.mark.parametrize("path", ["../../evil.pyth", "%2e%2e/%2e%2e/evil.pyth", "a/..%2f..%2fevil.pyth", "..%5cevil.pyth"])
def test_a_url_leads_nowhere(site: Site, cache: Path, tmp_path: Path, path: str) -> None:
    site.files[path] = file_of(random_model(), tmp_path / "w")
    zoo.load(site.url(path))
    assert not list(tmp_path.rglob("evil.pyth")) and len(list(cache.glob("*.pyth"))) == 1
    assert {p.parent for p in (tmp_path / "cache").rglob("*") if p.is_file()} == {cache}
