"""Finding unlabelled images: the rest, folders, what is refused, and files that cannot be read."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_video import frame, write_video

from litheseg.data import Source, find_unlabelled, open_source
from litheseg.data.loading.cache import DecodedImages
from litheseg.data.sources.unlabelled import Unlabelled
from litheseg.errors import DataError


def save(path: Path, seed: int, size: tuple[int, int] = (6, 8)) -> Path:
    """A random RGB image; BMP files of one size have equal lengths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Six training and two validation images."""
    root = tmp_path / "data"
    for i in range(8):
        split = "train" if i < 6 else "val"
        save(root / "images" / split / f"{i}.bmp", i)
        mask(root / "masks" / split / f"{i}.png")
    (root / "classes.yaml").write_text("classes: [a, b]\n")
    return open_source("folder", root)


def names(found: Unlabelled) -> list[str]:
    return [sample.id for sample in found.samples]


def test_the_rest_is_what_is_not_labelled_and_needs_no_masks(source: Source) -> None:
    def read_mask(_: object) -> None:
        raise AssertionError("a mask was read")

    source.read_mask = source.raw_mask = read_mask  # type: ignore[assignment, method-assign]
    found = find_unlabelled("rest", source, ["1", "4"])
    assert names(found) == ["0", "2", "3", "5"]
    images = DecodedImages(found, size=None)
    assert len(images) == 4 and images.sizes() == [(6, 8)] * 4
    expected = np.random.default_rng(2).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(images[1].permute(1, 2, 0).numpy(), expected)


def test_the_rest_of_all_labels_is_refused(source: Source) -> None:
    with pytest.raises(DataError, match=r"all 6 training images are labelled.*label fewer.*folder"):
        find_unlabelled("rest", source)


def test_images_without_a_mask_are_the_rest_of_all_that_have_one(source: Source, tmp_path: Path) -> None:
    (tmp_path / "data/masks/train/3.png").unlink()
    loose = open_source("folder", tmp_path / "data", allow_unlabelled=True)
    assert names(find_unlabelled("rest", loose)) == ["3"]


def test_generated_images_serve_too() -> None:
    streets = open_source("streets", train=5, val=1, size=(32, 40))
    found = find_unlabelled("rest", streets, ["00001"])
    assert names(found) == ["00000", "00002", "00003", "00004"]
    assert DecodedImages(found, size=(16, 20))[0].shape == (3, 16, 20)


def test_a_folder_gives_all_its_images_at_any_depth(source: Source, tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deep/er/c.png", ".hidden.png"):
        save(tmp_path / "more" / name, 100 + len(name))
    (tmp_path / "more/notes.txt").write_text("no image")
    assert names(find_unlabelled(tmp_path / "more", source)) == ["a", "b", "deep/er/c"]
    assert names(find_unlabelled(str(tmp_path / "more"), source)) == ["a", "b", "deep/er/c"]


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        (["images/a.png", "images/deep/b.png", "other/c.png"], ["masks/a.png"], ["images/a", "images/deep/b"]),
        (["train/images/a.png"], ["train/masks/a.png"], ["train/images/a"]),
        (["train/a.png"], ["trainannot/a.png"], ["train/a"]),
        (["JPEGImages/a.jpg"], ["SegmentationClass/a.png"], ["JPEGImages/a"]),
        (["a.png"], ["Masks/a.png"], ["a"]),
        (["gt/a.png", "gt/b.png"], [], ["gt/a", "gt/b"]),  # the only images that there are
    ],
)
def test_folders_of_masks_are_passed_over(
    source: Source, tmp_path: Path, images: list[str], masks: list[str], expected: list[str]
) -> None:
    for i, name in enumerate(images):
        save(tmp_path / "more" / name, 100 + i)
    for name in masks:
        mask(tmp_path / "more" / name)
    assert names(find_unlabelled(tmp_path / "more", source)) == expected


def test_a_folder_without_images_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no images.*name another folder"):
        find_unlabelled(tmp_path / "empty", source)
    with pytest.raises(DataError, match=r"missing does not exist.*'rest'"):
        find_unlabelled(tmp_path / "missing", source)


def test_labelled_images_are_refused_as_the_same_file_or_a_copy(source: Source, tmp_path: Path) -> None:
    train, more = tmp_path / "data/images/train", tmp_path / "more"
    with pytest.raises(DataError, match=r"0.bmp is a labelled training image \(5 more are shared\); take it out"):
        find_unlabelled(train, source)
    # Of equal length, but not the same: no overlap.
    save(more / "new.bmp", 77)
    assert names(find_unlabelled(more, source)) == ["new"]
    shutil.copy(train / "3.bmp", more / "copy.bmp")
    with pytest.raises(DataError, match=r"copy.bmp has the same content as .*3.bmp: a labelled training image; take"):
        find_unlabelled(more, source)
    # Where that image is not labelled, the copy is merely one more.
    assert names(find_unlabelled(more, source, ["0", "1"])) == ["copy", "new"]
    (more / "link.bmp").symlink_to(train / "1.bmp")
    with pytest.raises(DataError, match=r"link.bmp is a labelled training image"):
        find_unlabelled(more, source, ["0", "1"])


def test_images_that_measure_the_result_are_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"6.bmp is an image of split 'val', which measures.*\(1 more"):
        find_unlabelled(tmp_path / "data/images/val", source, ["0"])
    more = tmp_path / "more"
    more.mkdir()
    save(tmp_path / "data/images/test/t.bmp", 50)  # without a mask
    shutil.copy(tmp_path / "data/images/test/t.bmp", more / "x.bmp")
    again = open_source("folder", tmp_path / "data")
    with pytest.raises(DataError, match=r"x.bmp has the same content as .*t.bmp: an image of split 'test'"):
        find_unlabelled(more, again, ["0"])
    # A data set that repeats a validation image among its training images, too.
    shutil.copy(tmp_path / "data/images/val/7.bmp", tmp_path / "data/images/train/5.bmp")
    with pytest.raises(DataError, match=r"5.bmp has the same content as .*7.bmp: an image of split 'val'"):
        find_unlabelled("rest", source, ["0"])


def twenty(folder: Path, broken: int) -> Unlabelled:
    paths = [save(folder / f"{i:02}.png", 200 + i) for i in range(20)]
    for i in range(broken):
        # Truncated, empty, no image at all: each in its turn.
        content = [paths[3 * i].read_bytes()[:60], b"", b"nothing"][i % 3]
        paths[3 * i].write_bytes(content)
    streets = open_source("streets", train=1, val=1, size=(32, 32))
    return find_unlabelled(folder, streets)


@pytest.mark.parametrize("keep", [True, False])
def test_a_few_unreadable_files_are_left_out_and_named(tmp_path: Path, keep: bool) -> None:
    images = DecodedImages(twenty(tmp_path, 1), size=(4, 4), keep=keep)
    with pytest.warns(
        UserWarning, match=r"1 of 20 unlabelled images cannot be read \(.*00.png; the first: .*truncated"
    ):
        assert len(images) == 19
    assert [images[i].shape for i in range(19)] == [(3, 4, 4)] * 19
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(DecodedImages(twenty(tmp_path, 1), size=(4, 4), keep=keep, quiet=True)) == 19


def test_many_unreadable_files_are_refused_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"5 of 20 .*00.png, .*03.png, .*06.png and 2 more; .*mend or remove.*now 0.1"):
        len(DecodedImages(twenty(tmp_path, 5), size=None))
    with pytest.warns(UserWarning, match="5 of 20"):
        assert len(DecodedImages(twenty(tmp_path, 5), size=None, unreadable=0.25)) == 15
    with pytest.raises(DataError, match="1 of 20"):
        len(DecodedImages(twenty(tmp_path / "one", 1), size=None, unreadable=0.0))


def test_a_limit_on_pixels_holds_for_other_folders_too(tmp_path: Path, source: Source) -> None:
    save(tmp_path / "more" / "large.png", 50, (10, 10))
    for index in range(20):
        save(tmp_path / "more" / f"{index}.png", 60 + index)
    limited = open_source("folder", tmp_path / "data", max_pixels=99)
    images = DecodedImages(find_unlabelled(tmp_path / "more", limited), size=None)
    with pytest.warns(UserWarning, match=r"large\.png.*10 x 10 pixels, and at most 99"):
        assert len(images) == 20


def test_frames_of_a_video(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setenv("LITHESEG_CACHE", str(tmp_path / "cache"))
    clip = write_video(tmp_path / "drive.mp4", 30)
    found = find_unlabelled(f"{clip}:10", source)
    assert names(found) == [f"drive_{number:06}" for number in (0, 10, 20)]
    for sample, number in zip(found.samples, (0, 10, 20), strict=True):
        assert np.abs(found.read_image(sample).astype(int) - frame(number)).mean() < 12
    assert names(find_unlabelled(clip, source)) == ["drive_000000", "drive_000025"]  # one a second
    clip.write_bytes(clip.read_bytes()[:200])
    with pytest.raises(DataError, match=r"drive\.mp4"):
        find_unlabelled(clip, source)
    for bad, message in (("none.mp4", "does not exist"), (f"{clip}:0", "every 0th frame")):
        with pytest.raises(DataError, match=message):
            find_unlabelled(bad, source)
