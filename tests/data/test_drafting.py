"""Drafted class lists: every value of the masks, with its share, in a file that reads back as what the masks hold."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from litheseg.cli import main
from litheseg.data.formats.drafting import draft_classes
from litheseg.data.sources.folder import FolderSource
from litheseg.errors import DataError
from litheseg.masks.classes import read_class_file


@pytest.fixture
def data(tmp_path):
    """A folder of two images; masks are up to the test."""
    for name in "ab":
        write(tmp_path / "images" / f"{name}.png", np.random.default_rng(ord(name)).integers(0, 256, (4, 5, 3)))
    return tmp_path


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint16 if array.max() > 255 else np.uint8)).save(path)


def masks(data, a, b):
    write(data / "masks/a.png", np.array(a))
    write(data / "masks/b.png", np.array(b))


def test_0_and_255_are_two_classes(data, capsys):
    masks(data, [[0, 0, 255, 255, 255]] * 4, [[255] * 5] * 4)
    assert main(["doctor", str(data), "--write-classes"]) == 0
    text = (data / "classes.yaml").read_text()
    assert "{name: class 255, id: 255}  # 80.00% of the pixels, in 2 of 2" in text
    assert "{name: class 0, id: 0}  # 20.00% of the pixels, in 1 of 2" in text
    source = FolderSource(data, val_fraction=0)
    np.testing.assert_array_equal(source.read_mask(source.samples("train")[0])[0], [0, 0, 1, 1, 1])
    assert "give the classes their names" in capsys.readouterr().err


def test_255_beside_others_is_ignored_and_values_may_have_16_bits(data):
    masks(data, [[0, 7, 255, 255, 3000]] * 4, [[7] * 5] * 4)
    scheme = read_class_file(draft_classes(data)).scheme
    assert scheme.classes.names == ("class 0", "class 7", "class 3000")
    assert dict(scheme.values) == {0: 0, 7: 1, 3000: 2, 255: 255}


def test_colours(data):
    row = [(10, 20, 30), (10, 20, 30), (0, 0, 0), (0, 0, 0), (200, 0, 0)]
    masks(data, [row] * 4, [[(0, 0, 0)] * 5] * 4)  # the second is grey, and black all the same
    file = draft_classes(data)
    assert read_class_file(file).scheme.classes.colors == ((0, 0, 0), (10, 20, 30), (200, 0, 0))
    source = FolderSource(data, val_fraction=0)
    first, second = (source.read_mask(sample) for sample in source.samples("train"))
    np.testing.assert_array_equal(first[0], [1, 1, 0, 0, 2])
    assert not second.any()


def test_grey_in_three_channels_is_an_index(data):
    masks(data, [[(1, 1, 1)] * 5] * 4, [[(2, 2, 2)] * 5] * 4)
    assert dict(read_class_file(draft_classes(data)).scheme.values) == {1: 0, 2: 1, 255: 255}


def test_what_makes_no_draft(data):
    with pytest.raises(DataError, match="has no masks"):
        draft_classes(data)
    masks(data, np.arange(20).reshape(4, 5) * 500, np.arange(20).reshape(4, 5) * 300 + 1)
    write(data / "images/c.png", np.zeros((20, 20, 3)))
    write(data / "masks/c.png", np.arange(400).reshape(20, 20))
    with pytest.raises(DataError, match=r"different values .* at most 254 classes.*smoothed"):
        draft_classes(data)
    masks(data, [[(1, 2, 3)] * 5] * 4, [[1] * 5] * 4)
    with pytest.raises(DataError, match=r"b\.png holds indices where other masks hold colours"):
        draft_classes(data)
    (data / "classes.yaml").write_text("classes: [a]")
    with pytest.raises(DataError, match=r"classes\.yaml is there already"):
        draft_classes(data)
