"""The procedural streets: exact, repeatable, and true to the eleven classes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from litheseg.data.sources.base import Sample
from litheseg.data.sources.streets import Streets
from litheseg.errors import DataError
from litheseg.streets import render_street
from litheseg.streets.scene import _leaves
from litheseg.streets.world import Camera, Canvas, Texture

SIZE = (60, 80)


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray]:
    """40 small scenes: images N H W 3 and masks N H W."""
    source = Streets(train=40, val=0, size=SIZE)
    samples = source.samples("train")
    return np.stack([source.read_image(s) for s in samples]), np.stack([source.read_mask(s) for s in samples])


def test_shapes_and_types(scenes):
    images, masks = scenes
    assert images.dtype == masks.dtype == np.uint8
    assert images.shape == (40, *SIZE, 3)
    assert masks.shape == (40, *SIZE)


@pytest.mark.parametrize("size", [(32, 32), (61, 97), (45, 200)])
def test_odd_sizes(size):
    image, mask = render_street(np.random.default_rng(3), size)
    assert image.shape == (*size, 3)
    assert mask.shape == size


def test_every_class_occurs_and_nothing_else(scenes):
    counts = np.bincount(scenes[1].ravel(), minlength=256)
    assert (counts[:11] > 0).all()
    assert counts[11:].sum() == 0


def test_no_class_swallows_the_scene(scenes):
    share = np.bincount(scenes[1].ravel(), minlength=11) / scenes[1].size
    assert share.max() < 0.5
    assert share[3] > 0.2  # road
    # Thin and small things are rare, as on a street.
    assert share[[2, 6, 9, 10]].max() < 0.05


def test_images_vary_and_are_neither_black_nor_burnt_out(scenes):
    means = scenes[0].reshape(40, -1).mean(axis=1)
    assert means.std() > 8
    assert means.min() > 10
    assert means.max() < 245
    assert len({image.tobytes() for image in scenes[0]}) == 40


def test_the_picture_follows_the_mask(scenes):
    # Colours change more across the mask's borders than inside its regions.
    images, masks = scenes
    step = np.abs(np.diff(images.astype(float), axis=2)).mean(axis=-1)
    border = masks[:, :, 1:] != masks[:, :, :-1]
    assert step[border].mean() > 2 * step[~border].mean()


def test_a_sample_depends_on_seed_split_index_and_size_only():
    short, long = Streets(train=2, val=1, size=SIZE), Streets(train=5, val=3, size=SIZE)
    for split in ("train", "val"):
        sample = short.samples(split)[-1]
        assert np.array_equal(short.read_image(sample), long.read_image(sample))
        assert np.array_equal(short.read_mask(sample), long.read_mask(sample))
    first = short.samples("train")[0]
    assert not np.array_equal(short.read_image(first), short.read_image(short.samples("val")[0]))
    assert not np.array_equal(short.read_image(first), Streets(train=2, size=SIZE, seed=1).read_image(first))


def test_another_process_makes_the_same_pictures():
    code = (
        "import hashlib; from litheseg.data.sources.streets import Streets\n"
        f"s = Streets(train=2, val=1, size={SIZE}); x = s.samples('train')[1]\n"
        "print(hashlib.sha256(s.read_image(x).tobytes() + s.read_mask(x).tobytes()).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(runs.pop().strip()) == 64


def test_what_a_reader_does_to_an_array_stays_with_the_reader():
    source = Streets(train=1, val=0, size=SIZE)
    sample = source.samples("train")[0]
    source.read_image(sample)[:] = 0
    source.read_mask(sample)[:] = 99
    assert source.read_image(sample).any()
    assert source.read_mask(sample).max() < 11
    assert np.array_equal(source.raw_mask(sample), source.read_mask(sample))


def test_splits_and_samples():
    source = Streets(train=3, val=0, size=SIZE)
    assert source.splits() == ("train",)
    assert [sample.id for sample in source.samples("train")] == ["00000", "00001", "00002"]
    assert len(source.classes) == 11
    with pytest.raises(DataError, match="no split 'val'"):
        source.samples("val")


@pytest.mark.parametrize(
    "options",
    [{"train": -1}, {"train": 0, "val": 0}, {"size": (8, 240)}, {"size": (180,)}, {"size": (180, 99999)}, {"seed": -1}],
)
def test_options_out_of_range(options):
    with pytest.raises(DataError, match="give"):
        Streets(**options)


def test_a_foreign_sample_is_refused():
    with pytest.raises(DataError, match="take samples from"):
        Streets().read_image(Sample("x", None, None, "train"))


def _camera(**changes: float) -> Camera:
    return Camera(**{"focal": 100.0, "u0": 80.0, "v0": 60.0, "height": 1.5, "roll": 0.0, "curve": 0.0, **changes})


def test_things_twice_as_far_are_half_as_large():
    camera = _camera()
    near, far = (camera.project((0.0, 0.0, z))[1] - camera.project((0.0, 2.0, z))[1] for z in (5.0, 10.0))
    assert near == pytest.approx(2 * far)
    assert camera.project((0.0, 1.5, 7.0)) == (80.0, 60.0)  # eye height is the horizon


def test_rays_undo_the_projection():
    camera = _camera(roll=0.02)
    across, down = camera.rays((120, 160))
    u, v = camera.project((2.0, 0.0, 8.0))
    assert across[int(v), int(u)] * 8 == pytest.approx(2.0, abs=0.1)
    assert down[int(v), int(u)] * 8 == pytest.approx(1.5, abs=0.1)


def test_the_nearer_thing_covers_a_railing():
    canvas = Canvas(_camera(), (120, 160))
    canvas.surface(0, (0, 0, 0), 1e3, Texture.SKY)
    rail, wall = canvas.surface(7, (9, 9, 9), 9.0, Texture.FENCE), canvas.surface(1, (5, 5, 5), 5.0)
    canvas.railing([(-2, 0, 9), (2, 0, 9), (2, 2, 9), (-2, 2, 9)], rail)
    canvas.polygon([(0, 0, 5), (2, 0, 5), (2, 3, 5), (0, 3, 5)], wall)
    numbers, overlay, _ = canvas.maps()
    assert overlay is not None
    assert (overlay == rail).any()
    assert not overlay[numbers == wall].any()


def test_fraying_leaves_poles_alone():
    canvas = Canvas(_camera(), (40, 60))
    canvas.surface(0, (0, 0, 0), 1e3, Texture.SKY)
    leaf, pole = canvas.surface(5, (0, 9, 0), 9.0, Texture.FOLIAGE), canvas.surface(2, (9, 9, 9), 5.0)
    numbers = np.zeros((40, 60), np.int32)
    numbers[10:30, 10:30] = leaf
    numbers[:, 20] = pole
    canvas.fill(numbers)
    canvas.roughen(np.random.default_rng(0).integers(-2, 3, (40, 60)).astype(np.int32))
    frayed = canvas.maps()[0]
    assert np.array_equal(frayed == pole, numbers == pole)
    assert not np.array_equal(frayed, numbers)


def test_leaves_do_not_wrap_around_the_sides():
    steps = _leaves(np.random.default_rng(0), (180, 61))
    columns = np.arange(61)[None, :]
    # A step is rows * width + columns with few columns, so its remainder is the step sideways.
    sideways = (steps + 30) % 61 - 30
    assert ((columns + sideways >= 0) & (columns + sideways < 61)).all()
    assert np.abs(sideways).max() == 2
