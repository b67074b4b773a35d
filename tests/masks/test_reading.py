"""Files of every kind that cameras and labelling tools write, and their damaged forms."""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from litheseg.errors import DataError
from litheseg.masks.classes import Classes, LabelScheme, read_class_file
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.opening import TooManyPixelsError
from litheseg.masks.reading import count_pixels, encode, read_image, read_mask, read_raw_mask, upright_size

TWO = Classes(("road", "car"), ((128, 64, 128), (0, 0, 230)))
INDEX = LabelScheme.build(TWO, ignore=[11])
RGB = LabelScheme.build(TWO, ignore=["#000000"], encoding="rgb")
LABELS = np.array([[0, 1, 11], [1, 255, 0]], np.uint8)
ENCODED = np.array([[0, 1, 255], [1, 255, 0]], np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def save_grey_png(path, rows, depth):
    """A grey PNG of `depth` bits a pixel, which Pillow reads but does not write."""
    height, width = rows.shape
    lines = b""
    for row in rows:
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        lines += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )
    return path


# Masks


def test_index_png(tmp_path):
    labels = read_mask(save(tmp_path / "a.png", LABELS), INDEX)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, ENCODED)


def test_palette_png_keeps_its_indices(tmp_path):
    image = Image.fromarray(LABELS).convert("L")
    palette = Image.new("P", (3, 2))
    palette.putdata(list(image.tobytes()))
    palette.putpalette([7, 7, 7] * 256)  # all colours equal: only the indices can tell the classes apart
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", INDEX), ENCODED)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_png_of_few_bits_is_not_stretched(tmp_path, depth):
    rows = np.arange(5).reshape(1, 5) % (1 << depth)
    path = save_grey_png(tmp_path / "a.png", rows, depth)
    np.testing.assert_array_equal(read_raw_mask(path), rows)


def test_16_bit_index_png(tmp_path):
    scheme = LabelScheme.build(TWO, ids=[300, 40_000], ignore=[65_535])
    path = save(tmp_path / "a.png", np.array([[300, 40_000, 65_535]], np.uint16))
    np.testing.assert_array_equal(read_mask(path, scheme), [[0, 1, 255]])


def test_rgb_mask(tmp_path):
    palette = np.array([*TWO.colors, (0, 0, 0)], np.uint8)
    path = save(tmp_path / "a.png", palette[[[0, 1, 2]]])
    np.testing.assert_array_equal(read_mask(path, RGB), [[0, 1, 255]])
    assert read_raw_mask(path).shape == (1, 3, 3)


def test_rgb_mask_with_alpha(tmp_path):
    path = save(tmp_path / "a.png", np.array([[(*TWO.colors[1], 0)]], np.uint8))
    np.testing.assert_array_equal(read_mask(path, RGB), [[1]])


def test_bilevel_mask_of_0_and_255(tmp_path):
    scheme = LabelScheme.build(Classes.from_names(["ground", "leaf"]), ids=[0, 255])
    path = save(tmp_path / "a.png", np.array([[0, 255]], np.uint8))
    np.testing.assert_array_equal(read_mask(path, scheme), [[0, 1]])


def test_all_ignored_mask_is_read(tmp_path):
    path = save(tmp_path / "a.png", np.full((2, 2), 11, np.uint8))
    assert (read_mask(path, INDEX) == 255).all()


def test_one_pixel(tmp_path):
    image, mask = save(tmp_path / "a.png", np.zeros((1, 1, 3), np.uint8)), save(tmp_path / "m.png", LABELS[:1, :1])
    assert read_image(image).shape == (1, 1, 3)
    assert read_mask(mask, INDEX, image).shape == (1, 1)


def test_labels_outside_the_classes_are_named(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 7, 7, 9]], np.uint8))
    with pytest.raises(
        DataError, match=r"a\.png: labels outside the 2 classes: 7 \(2 px\), 9 \(1 px\).*litheseg doctor"
    ):
        read_mask(path, INDEX)


def test_colours_outside_the_classes_are_named(tmp_path):
    path = save(tmp_path / "a.png", np.array([[(1, 2, 3)]], np.uint8))
    with pytest.raises(DataError, match=r"#010203 \(1 px\)"):
        read_mask(path, RGB)


def test_negative_and_huge_values_are_named():
    with pytest.raises(DataError, match=r"-1 \(1 px\), 70000"):
        encode(np.array([[0, -1, 70_000]], np.int32), INDEX, "a.tif")


def test_rgb_where_indices_are_expected(tmp_path):
    with pytest.raises(DataError, match=r"a\.png: an RGB mask where class indices.*encoding: rgb"):
        read_mask(save(tmp_path / "a.png", np.array([[(1, 2, 3)]], np.uint8)), INDEX)


def test_a_grey_mask_of_three_channels_is_an_index_mask(tmp_path):
    three = save(tmp_path / "a.png", np.stack([LABELS] * 3, -1))
    np.testing.assert_array_equal(read_mask(three, INDEX), read_mask(save(tmp_path / "b.png", LABELS), INDEX))


def test_indices_where_colours_are_expected(tmp_path):
    with pytest.raises(DataError, match="encoding: index"):
        read_mask(save(tmp_path / "a.png", LABELS), RGB)


def test_jpeg_mask_is_refused(tmp_path):
    with pytest.raises(DataError, match="smeared"):
        read_mask(save(tmp_path / "a.jpg", LABELS), INDEX)


def test_size_mismatch_names_both_files(tmp_path):
    image = save(tmp_path / "image.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(DataError, match=r"mask\.png: the mask is 2x3 .*image\.png is 4x6"):
        read_mask(save(tmp_path / "mask.png", LABELS), INDEX, image)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_applies_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    image = save(tmp_path / "a.png", stored, exif=exif)
    with Image.open(image) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_image(image), expected)


def test_mask_follows_the_image_it_fits_only_when_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image = save(tmp_path / "a.jpg", np.zeros((2, 3, 3), np.uint8), exif=exif)
    assert read_image(image).shape == (3, 2, 3)
    turned = np.rot90(ENCODED, -1)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "stored.png", LABELS), INDEX, image), turned)
    upright = save(tmp_path / "upright.png", np.ascontiguousarray(np.rot90(LABELS, -1)))
    np.testing.assert_array_equal(read_mask(upright, INDEX, image), turned)
    tagged = save(tmp_path / "tagged.png", LABELS, exif=exif)
    np.testing.assert_array_equal(read_mask(tagged, INDEX, image), turned)


# Images


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (0, 0, 0)),
        ("LA", (90, 255), (90, 90, 90)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_image_modes(tmp_path, mode, pixel, expected):
    Image.new(mode, (3, 2), pixel).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8
    assert tuple(image[0, 0].tolist()) == expected


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_of_16_bits_keeps_its_values(tmp_path, name):
    values = np.array([[0, 300, 0x8000], [1, 2, 0xFFFF]], np.uint16)
    image = read_image(save(tmp_path / name, values))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, values[..., None])


def test_grey_of_floats_keeps_its_values(tmp_path):
    values = np.array([[-1.5, 0.25, 1e6]], np.float32)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", values)), values[..., None])


def test_values_that_are_not_finite_are_refused(tmp_path):
    values = np.zeros((3, 4, 2), np.float32)
    values[1, 2] = np.nan, np.inf
    np.save(tmp_path / "a.npy", values)
    save(tmp_path / "b.tif", values[..., 0])
    with pytest.raises(DataError, match=r"a\.npy holds 2 values that are not finite .*fill them"):
        read_image(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"b\.tif holds values that are not finite .*fill them"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_image(tmp_path, ending, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"a.{ending}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=rf"a\.{ending}"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_file_that_is_no_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png is not an image"):
        read_image(tmp_path / "a.png")


def header_only(path, height, width):
    """A grey PNG that claims a size and holds nothing."""
    save_grey_png(path, np.zeros((1, 1)), 8)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("height", "width"), [(13_000, 13_000), (60_000, 60_000)])
def test_size_is_judged_by_the_header(tmp_path, height, width, recwarn):
    path = header_only(tmp_path / "a.png", height, width)
    for read in (read_image, count_pixels, read_raw_mask, lambda path: read_mask(path, INDEX)):
        with pytest.raises(TooManyPixelsError, match=rf"a\.png: {width} x {height} pixels.*--max-pixels"):
            read(path)
    assert not recwarn.list


def test_the_limit_may_be_chosen_whatever_pillows_own_is(tmp_path, monkeypatch, recwarn):
    path = save(tmp_path / "a.png", np.zeros((9, 9), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert read_image(path).shape == (9, 9, 3)
    assert read_image(path, max_pixels=81).shape == (9, 9, 3) and count_pixels(path, max_pixels=81) == 81
    with pytest.raises(TooManyPixelsError, match="at most 80"):
        read_image(path, max_pixels=80)
    assert read_mask(path, INDEX, path, max_pixels=81).shape == (9, 9)
    assert Image.MAX_IMAGE_PIXELS == 20 and not recwarn.list


def test_pillows_limit_is_as_it_was_after_many_threads(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((60, 60), np.uint8))
    before = Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        limits = [3600 + index for index in range(200)]
        assert set(pool.map(lambda limit: read_image(path, max_pixels=limit).shape, limits)) == {(60, 60, 3)}
    assert Image.MAX_IMAGE_PIXELS == before


def test_a_decoder_that_fails_in_its_own_way(tmp_path, monkeypatch):
    """As Pillow's AVIF decoder does on damaged files."""
    path = save(tmp_path / "a.png", np.zeros((9, 9), np.uint8))

    def load(_):
        raise RuntimeError("Failed to decode frame 0")

    monkeypatch.setattr(PngImageFile, "load", load)
    with pytest.raises(DataError, match=r"a\.png is damaged or truncated \(Failed to decode"):
        read_image(path)


def test_missing_image(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "a.png")


# Class files


def write(tmp_path, text):
    (tmp_path / "classes.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "classes.yaml"


def test_plain_list(tmp_path):
    scheme = read_class_file(write(tmp_path, "- road\n- car\n")).scheme
    assert scheme.classes.names == ("road", "car") and dict(scheme.values) == {0: 0, 1: 1, 255: 255}


def test_full_class_file(tmp_path):
    text = """
    name: streets of Bonn
    licence: CC BY 4.0
    classes:
      - {name: road, color: [128, 64, 128], id: 7}
      - {name: car, color: "#0000e6", id: 26}
    ignore: [0, 255]
    remap: {27: car, 28: 26, 29: ignore, 30: 0}
    """
    content = read_class_file(write(tmp_path, text))
    assert content.scheme.classes == Classes(("road", "car"), ((128, 64, 128), (0, 0, 230)))
    assert (content.name, content.licence, content.citation) == ("streets of Bonn", "CC BY 4.0", "")
    assert dict(content.scheme.values) == {7: 0, 26: 1, 0: 255, 255: 255, 27: 1, 28: 1, 29: 255, 30: 255}


def test_remap_wins_over_ignore_and_ids(tmp_path):
    text = "{classes: [road, car], ignore: [0, 1, 2], remap: {7: 0, 8: 1}}"
    assert dict(read_class_file(write(tmp_path, text)).scheme.values) == {0: 255, 1: 255, 2: 255, 255: 255, 7: 0, 8: 1}


def test_rgb_class_file(tmp_path):
    text = "{classes: [{name: a, color: '#010203'}], ignore: [[0, 0, 0]], remap: {'#040506': a}, encoding: rgb}"
    assert dict(read_class_file(write(tmp_path, text)).scheme.values) == {0x010203: 0, 0: 255, 0x040506: 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{classes: [a], ingore: [3]}", "unknown key 'ingore'. Did you mean 'ignore'"),
        ("{classes: [{name: a, colour: [1, 2, 3]}]}", "unknown key 'colour'. Did you mean 'color'"),
        ("{classes: [{id: 3}]}", "has no 'name'"),
        ("{names: [a]}", "no 'classes'"),
        ("{classes: a}", "must be a list"),
        ("", "no 'classes'"),
        ("{classes: [a", "not readable YAML"),
        ("{classes: [a, a]}", "occurs twice"),
        ("{classes: [yes]}", "quote it"),
        ("{classes: [{name: a, color: [1, 2, 300]}]}", "three numbers"),
        ("{classes: [{name: a, color: 3}]}", "three numbers"),
        ("{classes: [{name: a, id: 2}, {name: b, id: 2}]}", "share the value 2"),
        ("{classes: [{name: a, id: 70000}]}", "0..65535"),
        ("{classes: [a, b], ignore: [0]}", "class 'a' can never occur"),
        ("{classes: [a, b], remap: {1: a}}", "class 'b' can never occur"),
        ("{classes: [a], remap: {5: aa}}", "no class. Did you mean 'a'"),
        ("{classes: [a], remap: {5: 6}}", "neither a class nor ignored"),
        ("{classes: [a], remap: [5]}", "must map"),
        ("{classes: [a], encoding: rbg}", "Did you mean 'rgb'"),
        ("{classes: [a], encoding: rgb}", "no 'color'"),
        ("{classes: [{name: a, color: [0, 0, 0], id: 3}], encoding: rgb}", "no meaning"),
        ("{classes: [{name: a, color: [0, 0, 0]}], ignore: [255], encoding: rgb}", "three numbers"),
    ],
)
def test_class_files_that_are_refused(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        read_class_file(write(tmp_path, text))
    assert "classes.yaml" in str(caught.value) and message in str(caught.value)


def test_missing_class_file(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_class_file(tmp_path / "classes.yaml")


def test_palette():
    palette = TWO.palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert tuple(palette[1]) == (0, 0, 230) and not palette[2:].any()


def test_default_colours_differ():
    classes = Classes.from_names(str(index) for index in range(254))
    assert len(set(classes.colors)) == 254 and (0, 0, 0) not in classes.colors
    with pytest.raises(DataError, match="at most 254"):
        Classes.from_names(str(index) for index in range(255))


def field(channels, kind):
    values = np.random.default_rng(0).integers(0, 250, (20, 30, channels))
    return (values / 7 - 3 if kind == "f4" else values * 257 if kind == "u2" else values).astype(kind)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize(("channels", "kind"), [(2, "u1"), (4, "u1"), (5, "u2"), (3, "u2"), (13, "f4")])
def test_tiffs_of_many_channels(tmp_path, order, planes, channels, kind):
    values = field(channels, kind)
    stored = values if planes == "contig" else values.transpose(2, 0, 1)
    how = {"photometric": "minisblack", "planarconfig": planes, "byteorder": order, "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", stored, bigtiff=channels == 13, **how)
    image = read_image(tmp_path / "a.tif")
    assert image.dtype == np.dtype(kind) and image.dtype.isnative and image.flags.c_contiguous
    np.testing.assert_array_equal(image, values)
    assert upright_size(tmp_path / "a.tif") == (20, 30)


def test_pages_of_one_size_are_channels(tmp_path):
    values = field(6, "u2")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in values.transpose(2, 0, 1):
            file.write(page, contiguous=False, metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), values)


def test_a_preview_is_no_channel(tmp_path):
    values = field(1, "u1")[..., 0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values)
        file.write(values[::2, ::2], subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.repeat(values[..., None], 3, 2))


@pytest.mark.parametrize(("extra", "channels"), [("unassalpha", 3), ("unspecified", 4)])
def test_a_fourth_channel_counts_unless_it_says_that_it_is_alpha(tmp_path, extra, channels):
    values = field(4, "u1")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[extra])
    assert read_image(tmp_path / "a.tif").shape == (20, 30, channels)


@pytest.mark.parametrize(("channels", "kind"), [(1, "u2"), (4, "f4"), (8, "u1")])
def test_npy(tmp_path, channels, kind):
    values = field(channels, kind)
    np.save(tmp_path / "a.npy", values if channels > 1 else values[..., 0])
    image = read_image(tmp_path / "a.npy", ImageFormat(channels, str(values.dtype)))
    np.testing.assert_array_equal(image, values)


def test_arrays_that_are_no_images(tmp_path):
    cases = {
        "objects": (np.array([[{}]], object), "holds objects"),
        "signed": (np.zeros((4, 4), np.int16), "int16 numbers; save images as uint8, uint16 or float32"),
        "first": (np.zeros((5, 300, 400), np.uint8), r"400 channels; .*np\.moveaxis"),
        "four": (np.zeros((1, 2, 3, 4), np.uint8), r"the shape \(1, 2, 3, 4\); save it as height x width"),
        "empty": (np.zeros((0, 4), np.uint8), "no pixel"),
    }
    for name, (values, message) in cases.items():
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(DataError, match=rf"{name}\.npy.*{message}"):
            read_image(tmp_path / f"{name}.npy")
    content = (tmp_path / "first.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[: len(content) // 2])
    tifffile.imwrite(tmp_path / "whole.tif", field(5, "u2"), photometric="minisblack", planarconfig="contig")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:3000])
    for name in ("cut.npy", "cut.tif"):
        with pytest.raises(DataError, match=rf"{name}.*(damaged|decoded)"):
            read_image(tmp_path / name)


def test_size_of_arrays_is_judged_by_the_header(tmp_path):
    np.save(tmp_path / "a.npy", field(13, "f4"))
    read_image(tmp_path / "a.npy", max_pixels=20 * 30 * 13 * 4 // 16)
    with pytest.raises(TooManyPixelsError, match=r"30 x 20 \(13 of float32 each\) pixels, and at most 1949"):
        read_image(tmp_path / "a.npy", max_pixels=20 * 30 * 13 * 4 // 16 - 1)


def test_another_format_is_named_with_its_remedy(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", field(5, "u2"), photometric="minisblack", planarconfig="contig")
    with pytest.raises(DataError, match=r"a\.tif has 5 channels of uint16, and .* 3 channels of uint8; convert it"):
        read_image(tmp_path / "a.tif", ImageFormat())


def test_masks_as_npy(tmp_path):
    labels = np.array([[0, 1], [1, 0]], np.int64)
    np.save(tmp_path / "a.npy", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.npy", INDEX), labels)
    np.save(tmp_path / "b.npy", labels.astype(np.float32))
    with pytest.raises(DataError, match=r"b\.npy: a mask of 1 channel of float32; save whole numbers"):
        read_mask(tmp_path / "b.npy", INDEX)
