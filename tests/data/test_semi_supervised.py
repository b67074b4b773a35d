"""Labelled and unlabelled images in one batch: the same for any ranks, caches and resumes, in one geometry."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from litheseg.data.loading.datamodule import SegmentationData
from litheseg.data.loading.transforms import Augment
from litheseg.data.loading.views import UnlabelledViews, cut_mix
from litheseg.data.sources.base import Sample, Source
from litheseg.data.sources.unlabelled import Unlabelled, find_unlabelled
from litheseg.errors import DataError
from litheseg.masks.classes import Classes
from litheseg.masks.image_format import IMAGENET_MEAN, IMAGENET_STD

STRONG = UnlabelledViews(count=2, jitter=0.8, grey=0.2, blur=0.5)
IDS = [f"{i:03}" for i in range(6)]


class Places(Source):
    """Each pixel holds its row, its column and its sample's number (red, green, blue); labels are 0 and 2."""

    name, licence, citation = "places", "none", "none"

    def __init__(self, train: int = 16, sizes: Any = ((12, 16),)) -> None:
        self.classes = Classes(("a", "b", "c"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))
        self.counts, self.sizes, self.masks_read = {"train": train, "val": 2}, sizes, set[str]()

    def splits(self) -> tuple[str, ...]:
        return tuple(self.counts)

    def samples(self, split: str) -> tuple[Sample, ...]:
        return tuple(Sample(f"{i:03}", None, None, split) for i in range(self.counts[split]))

    def read_image(self, sample: Sample) -> np.ndarray:
        height, width = self.sizes[int(sample.id) % len(self.sizes)]
        rows, columns = np.mgrid[:height, :width]
        number = np.full((height, width), 10 * int(sample.id))
        return np.stack([60 + 8 * rows, 60 + 8 * columns, number], -1).astype(np.uint8)

    def read_mask(self, sample: Sample) -> np.ndarray:
        self.masks_read.add(sample.id)
        return (2 * (self.read_image(sample)[..., 0] > 90)).astype(np.uint8)

    def raw_mask(self, sample: Sample) -> np.ndarray:
        return self.read_mask(sample)


def semi(source: Places | None = None, rank: int = 0, world: int = 1, **options: Any) -> SegmentationData:
    """The first six images labelled, the rest not."""
    source = source or Places()
    unlabelled = find_unlabelled("rest", source, IDS)
    options = {"batch_size": 4, "train_ids": IDS, "views": STRONG, "seed": 3, "crop": (11, 13)} | options
    data = SegmentationData(source, unlabelled=unlabelled, **options)
    data._rank_of_world = lambda: (rank, world)  # type: ignore[method-assign]
    return data


def colours(images: Tensor) -> Tensor:
    """Values in 0..255 of normalised N3hw."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images * std + mean) * 255


def numbers(images: Tensor) -> list[int]:
    return (colours(images)[:, 2, 0, 0] / 10).round().int().tolist()


def joined(parts: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def still(**options: Any) -> dict[str, Any]:
    return {"augment": Augment.none(), "crop": None, "views": UnlabelledViews()} | options


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_batch_is_what_was_agreed() -> None:
    batch = semi().train_batch(1, 1)
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items()}
    assert shapes == {
        "image": ((4, 3, 11, 13), torch.float32),
        "mask": ((4, 11, 13), torch.int64),
        "weak": ((4, 3, 11, 13), torch.float32),
        "inside": ((4, 11, 13), torch.bool),
        "mixed": ((2, 4, 3, 11, 13), torch.float32),
        "cut": ((2, 4, 11, 13), torch.bool),
        "partner": ((4,), torch.int64),
    }
    assert batch["partner"].tolist() == [1, 2, 3, 0]
    share = batch["cut"].double().mean((2, 3))
    assert (share >= 0.25).all() and (share <= 0.5).all() and not torch.equal(batch["cut"][0], batch["cut"][1])


def test_without_colour_changes_a_mix_is_cut_from_weak_views() -> None:
    batch = semi(views=UnlabelledViews()).train_batch(0, 1)
    assert torch.equal(batch["mixed"][0], cut_mix(batch["weak"], batch["cut"][0], batch["partner"]))


def test_strong_views_keep_the_geometry_of_weak_ones_pixel_by_pixel() -> None:
    """Red is the row and green the column: a strong view must be one affine function of its weak view's colours."""
    views = UnlabelledViews(jitter=1.0, boxes=0, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02)
    augment = Augment(scale=(0.5, 2.0))
    batch = semi(views=views, augment=augment, crop=(14, 18)).train_batch(2, 0)
    for weak, strong, inside in zip(batch["weak"], batch["mixed"][0], batch["inside"], strict=True):
        here = weak[:, inside].double().T.numpy()
        given = np.concatenate([here, np.ones((len(here), 1))], 1)
        there = strong[:, inside].double().T.numpy()
        solution = np.linalg.lstsq(given, there, rcond=None)[0]
        assert np.abs(given @ solution - there).max() < 1e-4 < np.abs(there - here).max()


def test_weak_views_have_the_images_own_colours_and_any_geometry() -> None:
    data = semi(augment=Augment(brightness=1.0, hue=0.5), views=UnlabelledViews(boxes=0))
    seen = set()
    for epoch in range(3):
        batch = data.train_batch(epoch, 0)
        for view, inside in zip(colours(batch["weak"]), batch["inside"], strict=True):
            blue = view[2][inside]
            assert (blue - blue.mean()).abs().max() < 0.01  # the sample's number, untouched
            seen.add(round(float(blue.mean()) / 10))
    assert len(seen) > 4 and min(seen) >= 6


def test_padding_is_marked() -> None:
    batch = semi(augment=Augment(scale=(1.0, 1.0)), crop=(20, 21)).train_batch(0, 0)
    assert batch["inside"].sum((1, 2)).tolist() == [12 * 16] * 4
    assert batch["weak"].permute(0, 2, 3, 1)[~batch["inside"]].abs().max() == 0
    inside = torch.stack([cut_mix(batch["inside"], cut, batch["partner"]) for cut in batch["cut"]])
    assert batch["mixed"].movedim(2, -1)[~inside].abs().max() == 0


@pytest.mark.parametrize("sizes", [((12, 16),), ((12, 16), (9, 20))])
@pytest.mark.parametrize("world", [2, 4])
def test_slices_of_all_ranks_are_the_batch_of_one(sizes: Any, world: int) -> None:
    whole = semi(Places(sizes=sizes)).train_batch(1, 0)
    parts = [semi(Places(sizes=sizes), rank, world).train_batch(1, 0) for rank in range(world)]
    count = 4 // world
    for key, axis in {"image": 0, "mask": 0, "mixed": 1, "cut": 1}.items():
        torch.testing.assert_close(torch.cat([part[key] for part in parts], axis), whole[key], atol=1e-5, rtol=0)
    for key in ("weak", "inside"):
        own = torch.cat([part[key][:count] for part in parts])
        torch.testing.assert_close(own, whole[key], atol=1e-5, rtol=0)
    for rank, part in enumerate(parts):
        assert len(part["weak"]) == len(part["inside"]) == count + 1
        assert part["partner"].tolist() == list(range(1, count + 1))
        torch.testing.assert_close(part["weak"][-1], whole["weak"][(rank + 1) * count % 4], atol=1e-5, rtol=0)


def test_an_epoch_is_one_pass_over_the_unlabelled_images_while_labelled_ones_come_round() -> None:
    data = semi(Places(20), **still(batch_size=2))
    assert (data.labelled_count, data.unlabelled_count, data.steps_per_epoch) == (6, 14, 7)
    assert len(data.train_dataloader()) == 7
    weak = [[numbers(data.train_batch(epoch, index)["weak"]) for index in range(7)] for epoch in range(2)]
    orders = [joined(epoch) for epoch in weak]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6, 20)) and orders[0] != orders[1]
    images = [numbers(data.train_batch(*divmod(position, 7))["image"]) for position in range(12)]
    passes = [joined(images[start : start + 3]) for start in range(0, 12, 3)]
    assert all(sorted(seen) == list(range(6)) for seen in passes) and len({tuple(seen) for seen in passes}) > 1


def test_with_as_many_steps_as_a_pass_labelled_batches_are_those_of_a_supervised_run() -> None:
    plain = SegmentationData(Places(), train_ids=IDS, batch_size=2, seed=3, crop=(11, 13))
    data = semi(batch_size=2, steps=3)
    for key in ((0, 0), (0, 2), (4, 1)):
        labelled, both = plain.train_batch(*key), data.train_batch(*key)
        assert same(labelled, {name: both[name] for name in ("image", "mask")})


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_steps_set_the_length_of_an_epoch_with_and_without_unlabelled_images(steps: int) -> None:
    plain = SegmentationData(Places(), train_ids=IDS, batch_size=2, steps=steps, **{"augment": Augment.none()})
    both = semi(**still(batch_size=2, steps=steps))
    for data in (plain, both):
        assert data.steps_per_epoch == len(data.train_dataloader()) == steps
        seen = [numbers(data.train_batch(*divmod(position, steps))["image"]) for position in range(3)]
        assert sorted(joined(seen)) == list(range(6))
    weak = [numbers(both.train_batch(*divmod(position, steps))["weak"]) for position in range(5)]
    assert sorted(joined(weak)) == list(range(6, 16))


@pytest.mark.parametrize("sizes", [((12, 16),), ((12, 16), (9, 20))])
def test_caches_and_workers_give_the_same_batches(sizes: Any) -> None:
    def epoch(**options: Any) -> list[dict[str, Tensor]]:
        data = semi(Places(sizes=sizes), **options)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(2)
        return [data.on_after_batch_transfer(batch) for batch in loader]

    expected, others = epoch(), [{"cache": "none"}, {"cache": "none", "workers": 1}]
    if len(sizes) == 1:
        others.append({"cache": "device"})
    for options in others:
        assert all(same(one, other) for one, other in zip(expected, epoch(**options), strict=True))


def test_a_resumed_epoch_goes_on_where_it_was() -> None:
    data = semi(batch_size=2)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    whole, batches = [], iter(loader)
    for count in range(1, 6):
        whole.append(data.on_after_batch_transfer(next(batches)))
        if count == 2:
            state = loader.state_dict()
    again = semi(batch_size=2)
    resumed = again.train_dataloader()
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(1)
    rest = [again.on_after_batch_transfer(batch) for batch in resumed]
    assert len(rest) == 3 and all(same(one, other) for one, other in zip(whole[2:], rest, strict=True))


def test_the_global_generator_is_left_alone() -> None:
    data = semi()
    before = torch.get_rng_state()
    for batch in data.train_dataloader():
        data.on_after_batch_transfer(batch)
    assert torch.equal(before, torch.get_rng_state())


class Probe(L.LightningModule):
    """Remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = torch.nn.Conv2d(3, 1, 1), list[dict[str, Tensor]]()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch)
        return self.layer(batch["mixed"].flatten(0, 1)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
@pytest.mark.parametrize("sizes", [((12, 16),), ((12, 16), (9, 20))])
def test_training_sees_what_train_batch_says(tmp_path: Path, precision: Any, dtype: torch.dtype, sizes: Any) -> None:
    data, task = semi(Places(sizes=sizes)), Probe()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    runner = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, precision=precision, limit_val_batches=0, default_root_dir=tmp_path,
        **quiet,  # type: ignore[arg-type]
    )  # fmt: skip
    runner.fit(task, data)
    assert len(task.seen) == 4
    for position, seen in enumerate(task.seen):
        expected = semi(Places(sizes=sizes)).train_batch(*divmod(position, 2))
        for key, value in expected.items():
            assert seen[key].dtype == (dtype if value.is_floating_point() else value.dtype)
            tolerance = 0 if dtype == torch.float32 or not value.is_floating_point() else 0.05
            torch.testing.assert_close(seen[key].to(value.dtype), value, atol=tolerance, rtol=0)


def test_labels_are_counted_on_labelled_masks_only() -> None:
    source = Places()
    data = semi(source)
    masks = np.stack([source.read_mask(sample) for sample in source.samples("train")[:6]])
    source.masks_read.clear()
    assert data.class_histogram().tolist() == [int((masks == k).sum()) for k in range(3)]
    assert data.absent_classes() == ("b",)
    data.setup("fit")
    data.train_batch(0, 0)
    assert source.masks_read == set(IDS)  # validation has the first two of these numbers


def test_calibration_draws_from_both() -> None:
    found = semi(**still()).calibration_batches(99)
    assert [len(batch) for batch in found] == [4] * 4
    seen = [number for batch in found for number in numbers(batch)]
    assert sorted(seen) == list(range(16)) and seen != sorted(seen)
    varied = semi(Places(sizes=((12, 16), (9, 20)))).calibration_batches(1)
    assert varied[0].shape == (4, 3, 11, 13)


def test_labelled_images_are_those_with_a_mask(tmp_path: Path) -> None:
    class Sparse(Places):
        """Every fourth image has a mask file."""

        def samples(self, split: str) -> tuple[Sample, ...]:
            found = super().samples(split)
            masks = [Path(s.id) if split == "val" or int(s.id) % 4 == 0 else None for s in found]
            return tuple(Sample(s.id, tmp_path / f"{split}{s.id}", m, split) for s, m in zip(found, masks, strict=True))

    source = Sparse()
    data = SegmentationData(source, unlabelled=find_unlabelled("rest", source), batch_size=2)
    assert (data.labelled_count, data.unlabelled_count) == (4, 12)


def test_one_image_per_batch_is_its_own_partner() -> None:
    batch = semi(batch_size=1, views=UnlabelledViews()).train_batch(0, 0)
    assert batch["partner"].tolist() == [0] and torch.equal(batch["mixed"][0], batch["weak"])


@pytest.mark.parametrize("cache", ["ram", "none", "device"])
def test_a_file_that_cannot_be_read_does_not_stop_training(cache: Any) -> None:
    class Broken(Places):
        def read_image(self, sample: Sample) -> np.ndarray:
            if sample.id == "009" and sample.split == "train":
                raise DataError("009.png is damaged")
            return super().read_image(sample)

    data = semi(Broken(), **still(cache=cache, batch_size=3))
    with pytest.warns(UserWarning, match="1 of 10 unlabelled images cannot be read"):
        data.setup("fit")
    seen = [n for index in range(3) for n in numbers(data.train_batch(0, index)["weak"])]
    assert sorted(seen) == [6, 7, 8, 10, 11, 12, 13, 14, 15]
    with pytest.raises(DataError, match="1 of 10 unlabelled images cannot be read"):
        semi(Broken(), unreadable=0.05).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "count": 5}, "batch_size is 6, but there are only 5 unlabelled images.*at most 5"),
        ({"batch_size": 7}, "only 6 training images"),
        ({"sizes": ((12, 16), (9, 20)), "cache": "device", "size": None}, "one size"),
        ({"steps": 0}, "steps is 0; give an integer >= 1"),
        ({"unreadable": 1.5}, "unreadable is 1.5"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    source = Places(sizes=options.pop("sizes", ((12, 16),)))
    rest = find_unlabelled("rest", source, IDS).samples[: options.pop("count", 99)]
    with pytest.raises(DataError, match=message):
        SegmentationData(
            source, unlabelled=Unlabelled(rest, source), train_ids=IDS, crop=(8, 8), **{"batch_size": 4} | options
        ).setup("fit")
