"""Operations against Pillow, one image at a time; policies and spellings; what a sample becomes is its own affair."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import photograph
from data_makers import array_dataset
from PIL import Image, ImageEnhance, ImageOps

from pycls.data.augment import augmentation, policies
from pycls.data.augment.augmentation import Augmentation
from pycls.data.augment.names import V0, parse
from pycls.data.augment.pixel_ops import OPERATIONS, apply
from pycls.data.augment.policies import AugMix, AutoAugment, RandAugment, Samples
from pycls.data.loader import TrainLoader
from pycls.data.sampler import InstanceSampler, PowerSampler, RepeatedSampler
from pycls.data.sets.image_folder import ImageFolder
from pycls.errors import InputError

SPELLINGS = ["AutoAugment", "RandAugment_N2_M0.5", "TrivialAugmentWide", "AugMix", "rand-m9-mstd0.5-inc1", "rand-m7-n3", "v0",
             "augmix-m5-w4-d2"]  # fmt: skip
WARP = {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BILINEAR}


def affine(picture: Image.Image, *matrix: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, **WARP)


PILLOW = {
    "identity": lambda p, v: p,
    "autocontrast": lambda p, v: ImageOps.autocontrast(p),
    "equalize": lambda p, v: ImageOps.equalize(p),
    "invert": lambda p, v: ImageOps.invert(p),
    "brightness": lambda p, v: ImageEnhance.Brightness(p).enhance(v),
    "color": lambda p, v: ImageEnhance.Color(p).enhance(v),
    "contrast": lambda p, v: ImageEnhance.Contrast(p).enhance(v),
    "sharpness": lambda p, v: ImageEnhance.Sharpness(p).enhance(v),
    "posterize": lambda p, v: ImageOps.posterize(p, int(v)),
    "solarize": lambda p, v: ImageOps.solarize(p, v),
    "solarize_add": lambda p, v: p.point(lambda i: min(255, int(v) + i) if i < 128 else i),
    "rotate": lambda p, v: p.rotate(v, **WARP),
    "shear_x": lambda p, v: affine(p, 1, v, 0, 0, 1, 0),
    "shear_y": lambda p, v: affine(p, 1, 0, 0, v, 1, 0),
    "translate_x": lambda p, v: affine(p, 1, 0, v * p.size[0], 0, 1, 0),
    "translate_y": lambda p, v: affine(p, 1, 0, 0, 0, 1, v * p.size[1]),
    "shift_x": lambda p, v: affine(p, 1, 0, v, 0, 1, 0),
    "shift_y": lambda p, v: affine(p, 1, 0, 0, 0, 1, v),
}
VALUES = {"brightness": (0.1, 1.0, 1.9), "color": (0.1, 1.0, 1.9), "contrast": (0.1, 1.0, 1.9), "sharpness": (0.1, 1.9),
          "posterize": (1, 4, 8), "solarize": (0, 100, 256), "solarize_add": (0, 60, 110), "rotate": (-30, 12.5),
          "shear_x": (-0.3, 0.2), "shear_y": (-0.3, 0.2), "translate_x": (-0.45, 0.2), "translate_y": (-0.45, 0.2),
          "shift_x": (-7, 3), "shift_y": (-7, 3)}  # fmt: skip


def pictures() -> list[Image.Image]:
    flat = Image.new("RGB", (40, 32), (90, 90, 200))
    return [photograph(40, 32, seed) for seed in range(3)] + [flat]


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name: str) -> None:
    """Each image of a batch with a value of its own; the border of what is warped is left out, where Pillow has no filter."""
    cases = [(p, v) for p in pictures() for v in VALUES.get(name, (0.0,))]
    pixels = torch.stack([tensor(p) for p, _ in cases])
    made = apply(pixels, [name] * len(cases), torch.tensor([float(v) for _, v in cases]))
    for found, (picture, value) in zip(made, cases, strict=True):
        expected = tensor(PILLOW[name](picture, value)).int()
        difference = (found.int() - expected).abs()
        if OPERATIONS[name].__name__.startswith(("rotate", "shear", "translate", "shift")):
            assert (difference > 2).float().mean() < 0.06 and difference.float().mean() < 3, (value, difference.max())
        else:
            assert difference.max() <= 1, value


def test_a_batch_of_several_operations_leaves_the_others_alone() -> None:
    pixels = torch.stack([tensor(p) for p in pictures()])
    names = ["invert", "identity", "rotate", "invert"]
    made = apply(pixels, names, torch.tensor([0.0, 0.0, 20.0, 0.0]))
    assert torch.equal(made[1], pixels[1]) and torch.equal(made[3], 255 - pixels[3])
    alone = apply(pixels[2:3], ["rotate"], torch.tensor([20.0]))
    assert torch.equal(made[2:3], alone)


def test_weakest_increasing_operations_change_nothing() -> None:
    """As pycls says of its own: magnitude 0 leaves the image as it is, where the operation can."""
    pixels = torch.stack([tensor(p) for p in pictures()])
    for each in policies.INCREASING:
        if each.operation not in ("autocontrast", "equalize", "invert", "posterize"):  # its weakest keeps 4 bits
            values = torch.tensor([each.value(0.0, n) for n in (False, True, False, True)])
            assert torch.equal(apply(pixels, [each.operation] * 4, values), pixels), each


def test_no_posterized_image_is_black() -> None:
    pixels = torch.stack([tensor(p) for p in pictures()])
    none, one = (apply(pixels, ["posterize"] * 4, torch.full((4,), bits)) for bits in (0.0, 1.0))
    assert torch.equal(none, one) and one.any()


def test_spellings_of_pycls_and_timm_meet() -> None:
    assert parse("RandAugment_N2_M0.5_P0.5") == parse("rand-m5-n2-inc1") != parse("rand-m5-n2")
    assert parse("RandAugment_M0.9") == parse("rand-m9-p1-inc1")
    assert parse("AutoAugment") == parse("v0") and parse("AugMix") == parse("augmix-m3-w3") and parse("") is None
    noisy = parse("rand-m9-mstd0.5-inc1")
    assert isinstance(noisy, RandAugment) and noisy.strength == policies.Strength(0.9, 0.05, 1.0)
    uniform = parse("rand-m9-mstd101")
    assert isinstance(uniform, RandAugment) and math.isinf(uniform.strength.std)


def test_the_ranges_are_timms() -> None:
    """Every operation of both spaces, at each magnitude of timm's, against timm's own table."""
    timm = pytest.importorskip("timm.data.auto_augment")
    names = {"autocontrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "posterize": "Posterize",
             "solarize": "Solarize", "solarize_add": "SolarizeAdd", "rotate": "Rotate", "shear_x": "ShearX",
             "shear_y": "ShearY", "translate_x": "TranslateXRel", "translate_y": "TranslateYRel", "color": "Color",
             "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness"}  # fmt: skip
    for space, listed in ((policies.INCREASING, timm._RAND_INCREASING_TRANSFORMS), (policies.ORIGINAL, timm._RAND_TRANSFORMS)):
        ours = {names[r.operation]: r for r in space}
        assert len(listed) == len(space)
        for name in listed:
            level, each = timm.LEVEL_TO_ARG[name], ours[name.removesuffix("Increasing").replace("Original", "")]
            for magnitude in range(11):
                if level is None:
                    continue
                theirs = {abs(level(magnitude, {"translate_pct": 0.45})[0]) for _ in range(30)}
                found = {abs(each.value(magnitude / 10, negate)) for negate in (False, True)}
                if name != "SolarizeIncreasing":  # whole there, and not in pycls
                    assert {round(v, 6) for v in theirs} == {round(v, 6) for v in found}, (name, magnitude)


def test_the_policy_is_timms() -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    theirs = timm.auto_augment_policy_v0({"translate_pct": 0.45})
    names = {"ShearYcolor": "", "AutoContrast": "autocontrast", "TranslateYRel": "translate_y", "SolarizeAdd": "solarize_add",
             "ShearX": "shear_x", "ShearY": "shear_y"}  # fmt: skip
    for ours, pair in zip(V0, theirs, strict=True):
        found = [(names.get(op.name, op.name.lower()), op.prob, op.magnitude / 10) for op in pair]
        assert [(n, p, pytest.approx(m)) for n, p, m in ours] == [(n.replace("posterizeoriginal", "posterize"), p, m)
                                                                  for n, p, m in found]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("autoaugment", "there is no augmentation 'autoaugment'; there are: AutoAugment, RandAugment_N2_M0.5"),
        ("RandAugment_N2", "needs a magnitude from 0 to 1"),
        ("RandAugment_N2_M9", "M must be in 0..1, not 9"),
        ("RandAugment_N1.5_M0.5", "N must be a whole number"),
        ("RandAugment_N2_M0.5_X3", "'X3' is not understood; RandAugment takes N, M, P"),
        ("AutoAugment_M0.5", "AutoAugment takes nothing"),
        ("rand-m9-tweights", "'tweights' is not understood; rand takes m, n, p, mstd, mmax, inc"),
        ("rand-m9-m8", "each once"),
        ("original-mstd0.5", "there is no augmentation"),
    ],
)
def test_other_spellings_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert said in str(caught.value)


def batch(n: int = 64) -> torch.Tensor:
    return torch.stack([tensor(photograph(24, 24, seed % 7)) for seed in range(n)])


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_sample_is_a_function_of_seed_epoch_and_draw(name: str) -> None:
    policy, pixels = parse(name), batch()
    assert policy is not None
    draws = torch.arange(64) * 5
    whole = policy(pixels, Samples(3, 1, draws))
    assert whole.dtype == torch.uint8 and whole.shape == pixels.shape
    order = torch.arange(63, -1, -3)
    assert torch.equal(policy(pixels[order], Samples(3, 1, draws[order])), whole[order])
    channels_last = policy(pixels.contiguous(memory_format=torch.channels_last), Samples(3, 1, draws))
    assert torch.equal(channels_last, whole)
    for seed, epoch, other in ((4, 1, draws), (3, 2, draws), (3, 1, draws + 1)):
        assert (policy(pixels, Samples(seed, epoch, other)) != whole).flatten(1).any(dim=1).float().mean() > 0.3
    assert (whole != pixels).flatten(1).any(dim=1).float().mean() > 0.4
    grey = policy(pixels[:, :1], Samples(3, 1, draws))
    assert grey.shape == (64, 1, 24, 24)


def test_operations_are_chosen_evenly_and_with_their_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(policies, "apply", lambda pixels, names, values: chosen.extend(names) or pixels)
    samples = Samples(0, 0, torch.arange(15000))
    nothing = torch.zeros(15000, 3, 1, 1, dtype=torch.uint8)
    policy = parse("rand-m9-inc1")
    assert policy is not None
    policy(nothing, samples)
    counts = {name: chosen.count(name) for name in set(chosen)}
    assert counts.pop("identity") == pytest.approx(15000, rel=0.05) and len(counts) == 15
    assert all(count == pytest.approx(1000, rel=0.15) for count in counts.values())
    chosen.clear()
    AutoAugment(V0)(nothing, samples)
    wanted: dict[str, float] = {}
    for pair in V0:
        for name, prob, _ in pair:
            wanted[name] = wanted.get(name, 0) + 600 * prob
    assert all(chosen.count(name) == pytest.approx(count, rel=0.15, abs=20) for name, count in wanted.items())


def test_augmix_is_a_convex_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every operation blackens, an image becomes a share of itself that is uniform: Beta(1, 1)."""
    pixels = torch.full((2000, 1, 2, 2), 200, dtype=torch.uint8)
    monkeypatch.setattr(policies, "apply", lambda pixels, names, values: torch.zeros_like(pixels))
    shares = AugMix(policies.Strength(0.3))(pixels, Samples(0, 0, torch.arange(2000)))[:, 0, 0, 0] / 200
    assert shares.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.04)
    monkeypatch.setattr(policies, "apply", lambda pixels, names, values: pixels)
    assert torch.equal(AugMix(policies.Strength(0.3))(pixels, Samples(0, 0, torch.arange(2000))), pixels)


def test_lighting_is_along_the_principal_components() -> None:
    shifts = augmentation.lighting(Samples(0, 0, torch.arange(40000)), 0.1)
    vectors, values = torch.tensor(augmentation.LIGHT_VECTORS, dtype=torch.float64), torch.tensor(augmentation.LIGHT_VALUES)
    expected = vectors @ torch.diag(values.double() ** 2) @ vectors.T * 0.01
    assert torch.allclose(torch.cov(shifts.T), expected, atol=2e-5) and shifts.mean(0).abs().max() < 1e-3


def test_lighting_reaches_the_normalised_image() -> None:
    images = torch.zeros(5, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    samples = Samples(1, 2, torch.arange(5))
    made = Augmentation(pca_std=0.1).on_floats(images, samples, (0.5, 0.25, 0.2))
    shift = augmentation.lighting(samples, 0.1) / torch.tensor([0.5, 0.25, 0.2], dtype=torch.float64)
    assert torch.allclose(made, shift.float()[:, :, None, None].expand_as(made))
    assert torch.equal(Augmentation(pca_std=0.1).on_floats(torch.zeros(5, 1, 4, 4), samples, (0.5,)), torch.zeros(5, 1, 4, 4))


def test_erased_boxes() -> None:
    images = torch.ones(4000, 1, 20, 30)
    augmentation.erase(images, Samples(0, 0, torch.arange(4000)), 0.25)
    gone = (images[:, 0] == 0).flatten(1).sum(dim=1)
    hit = gone > 0
    assert hit.float().mean() == pytest.approx(0.25, abs=0.02)
    assert gone[hit].min() >= 8 and gone.max() <= 220 and gone[hit].float().mean() == pytest.approx(600 * 0.15, rel=0.2)
    for image in images[hit][:50, 0]:
        rows, columns = (image == 0).any(1).sum(), (image == 0).any(0).sum()
        assert rows * columns == (image == 0).sum()


def test_jitter_stays_in_its_range() -> None:
    """Of an image of one level contrast and saturation leave it: what remains is the brightness."""
    pixels = torch.full((2000, 3, 4, 4), 100, dtype=torch.uint8)
    made = Augmentation(color_jitter=0.4).on_bytes(pixels, Samples(0, 0, torch.arange(2000))).float()
    assert made.min() >= 58 and made.max() <= 142 and made.mean() == pytest.approx(100, abs=2)
    assert made.std() == pytest.approx(80 / math.sqrt(12), rel=0.1)


@pytest.mark.parametrize("make", [InstanceSampler, lambda n: PowerSampler(torch.arange(n) % 3, 0.0)])
def test_repeated_augmentation(make) -> None:
    sampler = make(40)
    repeated = RepeatedSampler(sampler, 40, 3)
    draws = repeated.draws(5, 2)
    assert len(draws) == len(repeated) == 40 and len(draws.unique()) == 40
    first = sampler.draws(5, 2)[:14]
    assert torch.equal(draws % 40, (first % 40).repeat_interleave(3)[:40])


# --- through the loaders


FULL = Augmentation(parse("rand-m9-mstd0.5-inc1"), color_jitter=0.4, pca_std=0.1, erase_prob=0.5)


def photos(folder: Path, n: int = 24) -> ImageFolder:
    for i in range(n):
        (folder / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        photograph(40 + i, 50, i).save(folder / "train" / "ab"[i % 2] / f"{i:02}.png")
    return ImageFolder(str(folder), "trainval", im_size=16, val_size=1)


def batches(loader: TrainLoader, epoch: int, start: int = 0) -> list[torch.Tensor]:
    return [b.images.clone() for b in loader.epoch(epoch, start)]


def test_files_look_the_same_with_any_number_of_loading_processes(tmp_path: Path) -> None:
    data = photos(tmp_path)
    alone = TrainLoader(data, 8, seed=1, augmentation=FULL)
    shared = TrainLoader(data, 8, seed=1, augmentation=FULL, num_workers=2)
    for epoch in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(batches(alone, epoch), batches(shared, epoch), strict=True))
    assert torch.equal(batches(shared, 1, start=2)[0], batches(alone, 1)[2])
    assert not torch.equal(batches(alone, 0)[0], batches(alone, 1)[0])
    plain = TrainLoader(data, 8, seed=1)
    assert not torch.equal(batches(alone, 0)[0], batches(plain, 0)[0])


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_in_memory_get_the_same(channels_last: bool) -> None:
    data = array_dataset(64, side=12, channels=3)
    loader = TrainLoader(data, 16, seed=1, augmentation=FULL, channels_last=channels_last)
    first = batches(loader, 3)
    assert torch.equal(first[2], batches(loader, 3, start=2)[0])
    halves = [TrainLoader(data, 16, seed=1, augmentation=FULL, rank=r, world_size=2) for r in (0, 1)]
    for whole, left, right in zip(first, *(batches(half, 3) for half in halves), strict=True):
        assert torch.equal(whole, torch.cat([left, right]))
    assert not torch.equal(first[0], batches(loader, 4)[0])
    other = TrainLoader(data, 16, seed=1, augmentation=FULL, channels_last=not channels_last)
    assert torch.equal(first[0], batches(other, 3)[0])


def test_progressive_size(tmp_path: Path) -> None:
    for data in (photos(tmp_path), array_dataset(24, side=12, channels=3)):
        loader = TrainLoader(data, 8, im_size=16, im_sizes=[[0, 8], [2, 12]])
        assert [batches(loader, epoch)[0].shape[-1] for epoch in (0, 1, 2, 9)] == [8, 8, 12, 12]
    for wrong in ([[0]], [[2, 8], [1, 12]], [[0, 0]]):
        with pytest.raises(ValueError, match="IM_SIZES"):
            TrainLoader(data, 8, im_sizes=wrong)
