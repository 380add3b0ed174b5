"""Images of every mode: the right picture, or a refusal that names the file, and never black or white in silence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from bad_files import photograph
from image_writers import tiff
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pycls.data.images.crop_spec import CropSpec
from pycls.data.images.decoding import TURNS, decode, decode_crop, orientation_of
from pycls.data.images.jpeg_decoder import jpeg_decoder
from pycls.data.images.jpegs import for_device
from pycls.data.images.prepare import CopyFormat, prepare
from pycls.data.loader import EvalLoader
from pycls.data.sets.image_folder import ImageFolder
from pycls.errors import RunError

WIDTH, HEIGHT = 24, 10
GREY = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)
DEEP = GREY.astype(np.uint16) * 257
SIGNED, FLOATS = 2, 3


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def grey_tiff(pixels: np.ndarray, **options: int | str) -> bytes:
    return tiff(WIDTH, HEIGHT, pixels.tobytes(), pixels.dtype.itemsize * 8, **options)  # type: ignore[arg-type]


def twelve_bits() -> bytes:
    """Two pixels in three bytes, 255 of 8 bits is 4095."""
    pairs = np.round(GREY / 255 * 4095).astype(int).reshape(-1, 2)
    return b"".join(struct.pack(">I", a << 12 | b)[1:] for a, b in pairs.tolist())


GREYS = {
    "png16": lambda: saved(Image.fromarray(DEEP), "PNG"),
    "png16_transparent": lambda: saved(Image.fromarray(DEEP), "PNG", transparency=514),
    "tiff16": lambda: grey_tiff(DEEP),
    "tiff16_big_endian": lambda: grey_tiff(DEEP.astype(">u2"), order=">"),
    "tiff16_compressed": lambda: saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
    "tiff16_white_is_zero": lambda: grey_tiff(65535 - DEEP, photometric=0),
    "tiff12": lambda: tiff(WIDTH, HEIGHT, twelve_bits(), 12),
    "tiff8_white_is_zero": lambda: grey_tiff(255 - GREY, photometric=0),
    "pgm16": lambda: b"P5 24 10 65535\n" + DEEP.astype(">u2").tobytes(),
    "pgm10": lambda: b"P5 24 10 1020\n" + (GREY.astype(np.uint16) * 4).astype(">u2").tobytes(),
    "jpeg2000_16": lambda: saved(Image.fromarray(DEEP), "JPEG2000"),
    "float": lambda: grey_tiff((GREY / np.float32(255)).astype("<f4"), sample_format=FLOATS),
    "float_big_endian": lambda: grey_tiff((GREY / np.float32(255)).astype(">f4"), sample_format=FLOATS, order=">"),
    "float_white_is_zero": lambda: grey_tiff((1 - GREY / np.float32(255)).astype("<f4"), sample_format=FLOATS, photometric=0),
    "mode_f": lambda: saved(Image.fromarray(GREY / np.float32(255)), "TIFF"),
    "pfm": lambda: b"Pf 24 10 -1.0\n" + (GREY[::-1] / np.float32(255)).astype("<f4").tobytes(),
    "la": lambda: saved(Image.fromarray(np.stack([GREY, GREY[::-1]], axis=2), "LA"), "PNG"),
    "grey": lambda: saved(Image.fromarray(GREY), "PNG"),
    "grey_transparent": lambda: saved(Image.fromarray(GREY), "PNG", transparency=7),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey(name: str) -> None:
    found = decode(GREYS[name]())
    assert found.dtype == np.uint8 and np.array_equal(found, np.repeat(GREY[:, :, None], 3, axis=2))


COLOURS = np.asarray(photograph(WIDTH, HEIGHT))


def palette(transparency: int | bytes | None = None) -> bytes:
    picture = Image.fromarray(COLOURS).quantize(200)
    return saved(picture, "PNG", **({} if transparency is None else {"transparency": transparency}))


def png16_rgb() -> bytes:
    """By hand: Pillow writes none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOURS.astype(np.uint16) * 257)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def frames(kind: str) -> bytes:
    others = [Image.fromarray(255 - COLOURS)] * 2
    return saved(Image.fromarray(COLOURS), kind, save_all=True, append_images=others, lossless=True)


PICTURES = {  # name -> file, grey levels of tolerance
    "rgba": (lambda: saved(Image.fromarray(np.dstack([COLOURS, GREY]), "RGBA"), "PNG"), 0),
    "rgb_transparent": (lambda: saved(Image.fromarray(COLOURS), "PNG", transparency=tuple(COLOURS[0, 0].tolist())), 0),
    "png16": (png16_rgb, 0),
    "palette": (palette, 32),
    "palette_transparent": (lambda: palette(3), 32),
    "palette_half_transparent": (lambda: palette(bytes(range(200))), 32),
    "pa": (lambda: saved(Image.fromarray(COLOURS).quantize(200).convert("PA"), "TIFF"), 32),
    "cmyk": (lambda: saved(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), 1),
    "cmyk_jpeg": (lambda: saved(Image.fromarray(COLOURS).convert("CMYK"), "JPEG", quality=99), 20),
    "ycbcr": (lambda: saved(Image.fromarray(COLOURS).convert("YCbCr"), "TIFF"), 3),
    "lab": (lambda: saved(Image.fromarray(COLOURS).convert("LAB"), "TIFF"), 20),
    "gif": (lambda: frames("GIF"), 20),
    "webp": (lambda: frames("WEBP"), 0),
    "tiff": (lambda: frames("TIFF"), 0),
    "apng": (lambda: frames("PNG"), 0),
}


@pytest.mark.parametrize("name", PICTURES)
def test_colours_and_first_frames(name: str) -> None:
    make, tolerance = PICTURES[name]
    found = decode(make())
    assert found.shape == COLOURS.shape and np.abs(found.astype(int) - COLOURS).max() <= tolerance


def test_one_bit() -> None:
    expected = np.where(GREY > 99, 255, 0)
    for kind in ("PNG", "TIFF", "BMP"):
        found = decode(saved(Image.fromarray(GREY > 99), kind))
        assert np.array_equal(found, np.repeat(expected[:, :, None], 3, axis=2))


REFUSED = {
    "float_255": (lambda: saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "0 .black. to 1 .white., these in 0 to 239"),
    "float_below": (lambda: saved(Image.fromarray(GREY / np.float32(255) - np.float32(0.5)), "TIFF"), "these in -0.5 to "),
    "nan": (lambda: saved(Image.fromarray(np.full((10, 24), np.nan, np.float32)), "TIFF"), "these in nan to nan"),
    "infinite": (lambda: saved(Image.fromarray(np.full((10, 24), np.inf, np.float32)), "TIFF"), "these in inf to inf"),
    "signed_32": (lambda: saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "signed or 32-bit integers do not say"),
    "unsigned_32": (lambda: grey_tiff(DEEP.astype("<u4")), "signed or 32-bit integers do not say"),
    "signed_16": (lambda: grey_tiff(DEEP.astype("<i2"), sample_format=SIGNED), "signed or 32-bit integers do not say"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_known_meaning_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    for folder in (tmp_path / "val/a", tmp_path / "val/b"):
        folder.mkdir(parents=True)
        (folder / "odd.tif").write_bytes(make())
    with pytest.raises(RunError, match=f"val/a/odd.tif cannot be loaded: .*{reason}"):
        list(EvalLoader(ImageFolder(str(tmp_path), "val", im_size=8), 2))
    bad = prepare(tmp_path / "val", tmp_path / "copy", CopyFormat(size=64), processes=1)
    assert len(bad) == 2 and not list((tmp_path / "copy").rglob("*.tif"))


UPRIGHT = Image.fromarray(np.asarray(photograph(48, 32, 1)))
BACK = {orientation: {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(orientation, turn)
        for orientation, turn in TURNS.items()}  # fmt: skip
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>'
KINDS = {
    "JPEG": {"quality": 99, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF_LZW": {"compression": "tiff_lzw"},
}


def turned_file(kind: str, orientation: int, by: str) -> bytes:
    """Upright when it is turned as it says, in EXIF or in XMP."""
    stored = UPRIGHT.transpose(BACK[orientation]) if orientation in BACK else UPRIGHT
    name, options = kind.split("_")[0], dict(KINDS[kind])
    if by == "exif":
        exif = Image.Exif()
        exif[0x0112] = orientation
        return saved(stored, name, exif=exif, **options)
    text = XMP.format(orientation)
    if name == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", text)
        return saved(stored, name, pnginfo=info, **options)
    if name == "TIFF":
        return saved(stored, name, tiffinfo={700: text.encode()}, **options)
    return saved(stored, name, xmp=text.encode(), **options)


def middle(height: int, width: int) -> CropSpec:
    assert (height, width) == (32, 48)
    return CropSpec((8, 0, 40, 32), (0, 0, 48, 32), flip=False)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("by", ["exif", "xmp"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_turned_once(kind: str, by: str, orientation: int) -> None:
    """Whole, cropped by either decoder, and as the device is told of them before they are decoded."""
    if (kind, by) == ("TIFF_LZW", "exif") and orientation not in range(1, 9):
        return  # libtiff does not write such a file
    data = turned_file(kind, orientation, by)
    found = decode(data)
    assert found.shape == (32, 48, 3) and np.abs(found.astype(int) - np.asarray(UPRIGHT)).max() <= (4 if kind == "JPEG" else 0)
    for decoder in (None, jpeg_decoder()):
        part = decode_crop(data, middle, 32, decoder)
        assert np.abs(part.astype(int) - np.asarray(UPRIGHT)[:, 8:40]).max() <= (4 if kind == "JPEG" else 0)
    handed = for_device(data, middle, 32)
    assert (handed is not None) == (kind == "JPEG") and (handed is None or handed.orientation == orientation)


@pytest.mark.parametrize("by", ["exif", "xmp"])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_turned_once(kind: str, by: str, tmp_path: Path) -> None:
    """Small files are copied as they are, others written upright."""
    name = "image.jpg" if kind == "JPEG" else f"image.{kind.split('_')[0].lower()}"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(turned_file(kind, 6, by))
    for size, expected in ((32, UPRIGHT), (16, UPRIGHT.resize((24, 16), Image.Resampling.BICUBIC))):
        assert not prepare(tmp_path / "in", tmp_path / str(size), CopyFormat(size=size), processes=1)
        found = decode((tmp_path / str(size) / name).read_bytes())
        assert found.shape[:2] == expected.size[::-1]
        assert np.abs(found.astype(int) - np.asarray(expected)).mean() < (8 if kind == "JPEG" else 1)


def test_copies_of_deep_images_are_their_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = [f"{name}.tif" for name in GREYS]
    for name in GREYS:
        (tmp_path / "in" / f"{name}.tif").write_bytes(GREYS[name]())
    assert not prepare(tmp_path / "in", tmp_path / "out", CopyFormat(size=5), processes=1)
    expected = np.asarray(Image.fromarray(GREY).resize((12, 5), Image.Resampling.BICUBIC)).astype(int)
    for name in names:
        found = decode((tmp_path / "out" / name).read_bytes())
        assert np.abs(found.astype(int) - expected[:, :, None]).max() <= 1, name


EXIF_ENTRIES = {  # type, values of each entry of the orientation; what Pillow reads
    "long": (4, [[6]], 6),
    "byte": (1, [[6]], 1),
    "signed": (8, [[6]], 6),
    "twice": (3, [[1], [6]], 1),
    "two_values": (3, [[6, 6]], 6),
    "none": (3, [[]], 1),
    "upright": (3, [[1]], 1),
}


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("name", EXIF_ENTRIES)
@pytest.mark.parametrize("order", ["<", ">"])
def test_unusual_orientations_are_read_alike_by_both_decoders(name: str, order: str) -> None:
    type_, entries, orientation = EXIF_ENTRIES[name]
    body = b"".join(struct.pack(order + "HHI", 0x0112, type_, len(values))
                    + struct.pack(order + {1: "B", 3: "H", 4: "I", 8: "h"}[type_] * len(values), *values).ljust(4, b"\0")
                    for values in entries)  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    segment = b"Exif\0\0" + head + body + bytes(4)
    plain = saved(UPRIGHT, "JPEG", quality=95)
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]

    def place(height: int, width: int) -> CropSpec:
        return CropSpec((0, 0, 32, 32), (0, 0, 32, 32), flip=False)

    by_pillow, compiled = (decode_crop(data, place, 32, decoder) for decoder in (None, jpeg_decoder()))
    assert orientation_of(Image.open(io.BytesIO(data))) == orientation
    assert np.abs(by_pillow.astype(int) - compiled).max() <= 2
