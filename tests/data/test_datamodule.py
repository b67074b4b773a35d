"""The datamodule: same batches for any world size, resume, worker, cache; masks and sizes as promised."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import warm
from torch import Tensor

from litheseg.data.loading import batches as batches_module
from litheseg.data.loading.datamodule import SegmentationData
from litheseg.data.loading.transforms import Augment, normalise
from litheseg.data.sources.base import Sample, Source
from litheseg.errors import DataError
from litheseg.masks.classes import Classes


class FakeSource(Source):
    """Images in memory; the first pixel names the sample, the labels are drawn by a seed."""

    name, licence, citation = "fake", "none", "none"

    def __init__(self, train: int = 12, val: int = 5, sizes: Any = ((12, 16),), mask_factor: int = 1) -> None:
        self.classes = Classes(("a", "b", "c", "d"), ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)))
        self.counts, self.sizes, self.mask_factor = {"train": train, "val": val}, sizes, mask_factor
        self.reads = 0

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split, count in self.counts.items() if count)

    def samples(self, split: str) -> tuple[Sample, ...]:
        return tuple(Sample(f"{i:03}", None, Path(f"{split}/{i:03}.png"), split) for i in range(self.counts[split]))

    def _size(self, sample: Sample) -> tuple[int, int]:
        return self.sizes[int(sample.id) % len(self.sizes)]

    def read_image(self, sample: Sample) -> np.ndarray:
        self.reads += 1
        image = np.random.default_rng(int(sample.id)).integers(0, 256, (*self._size(sample), 3), dtype=np.uint8)
        image[0, 0] = int(sample.id)
        return image

    def read_mask(self, sample: Sample) -> np.ndarray:
        height, width = self._size(sample)
        shape = (height * self.mask_factor, width * self.mask_factor)
        mask = np.random.default_rng(int(sample.id)).integers(0, 3, shape, dtype=np.uint8)
        mask[-1] = 255
        return mask

    def raw_mask(self, sample: Sample) -> np.ndarray:
        return self.read_mask(sample)


class Probe(L.LightningModule):
    """A task that trains one number and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 1)
        self.seen: list[tuple[int, int, float, int]] = []
        self.validated: list[float] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        fingerprint = (float(batch["image"].double().sum()), int(batch["mask"].sum()))
        self.seen.append((self.current_epoch, batch_idx, *fingerprint))
        return self.layer(batch["image"]).square().mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated += batch["image"][:, 0, 0, 0].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**defaults | options)


def at_rank(data: SegmentationData, rank: int, world: int) -> SegmentationData:
    data._rank_of_world = lambda: (rank, world)  # type: ignore[method-assign]
    return data


def ids(images: Tensor) -> list[int]:
    """The samples of normalised, unaugmented images."""
    marks = normalise(torch.arange(256, dtype=torch.uint8).expand(3, 1, 256))[0, 0]
    return [int((marks - value).abs().argmin()) for value in images[:, 0, 0, 0]]


@pytest.mark.parametrize("sizes", [((12, 16),), ((12, 16), (9, 20))])
def test_global_batches_do_not_depend_on_the_world_size(sizes: Any) -> None:
    options: dict[str, Any] = {"batch_size": 4, "crop": (10, 10), "seed": 3}
    one = SegmentationData(FakeSource(sizes=sizes), **options)
    parts = [at_rank(SegmentationData(FakeSource(sizes=sizes), **options), rank, 2) for rank in range(2)]
    for epoch, index in ((0, 0), (0, 2), (5, 1)):
        whole = one.train_batch(epoch, index)
        halves = [part.train_batch(epoch, index) for part in parts]
        assert torch.equal(whole["mask"], torch.cat([half["mask"] for half in halves]))
        torch.testing.assert_close(whole["image"], torch.cat([half["image"] for half in halves]))


def test_an_epoch_shows_each_image_once_in_a_new_order() -> None:
    data = SegmentationData(FakeSource(13), batch_size=4, augment=Augment.none())
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append([i for batch in loader for i in ids(data.on_after_batch_transfer(batch)["image"])])
    assert len(loader) == 3 and len(set(orders[0])) == 12
    assert orders[0] == orders[2] != orders[1]


def test_types_sizes_and_value_ranges() -> None:
    size: Any = [6, 8]  # as a YAML file gives it
    data = SegmentationData(FakeSource(mask_factor=2), size=size, batch_size=4, crop=(5, 7), eval_batch_size=2)
    raw = next(iter(data.train_dataloader()))
    assert raw["image"].dtype == raw["mask"].dtype == torch.uint8
    assert raw["image"].shape == (4, 3, 6, 8) and raw["mask"].shape == (4, 6, 8)
    train = data.on_after_batch_transfer(raw)
    assert train["image"].shape == (4, 3, 5, 7) and train["image"].dtype == torch.float32
    assert train["mask"].shape == (4, 5, 7) and train["mask"].dtype == torch.int64
    assert set(train["mask"].unique().tolist()) <= {0, 1, 2, 255}
    val = list(data.val_dataloader())
    assert [len(batch["image"]) for batch in val] == [2, 2, 1]
    assert val[0]["image"].shape == (2, 3, 6, 8) and val[0]["image"].dtype == torch.float32
    assert val[0]["mask"].shape == (2, 24, 32) and val[0]["mask"].dtype == torch.int64
    assert data.on_after_batch_transfer(val[0]) is val[0]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("eval_batch_size", [1, 2])
def test_validation_scores_each_sample_once_and_stacks_equal_sizes(world: int, eval_batch_size: int) -> None:
    seen: list[int] = []
    for rank in range(world):
        data = SegmentationData(FakeSource(val=7, sizes=((12, 16), (9, 20))), eval_batch_size=eval_batch_size)
        seen += [i for batch in at_rank(data, rank, world).val_dataloader() for i in ids(batch["image"])]
    assert sorted(seen) == list(range(7))


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_leave_the_global_generator_alone(workers: int) -> None:
    data = SegmentationData(FakeSource(), batch_size=4, workers=workers)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            data.on_after_batch_transfer(batch)
    assert torch.equal(before, torch.get_rng_state())


def test_caches_and_workers_give_the_same_batches() -> None:
    def epoch(**options: Any) -> list[dict[str, Tensor]]:
        data = SegmentationData(FakeSource(mask_factor=2), size=(6, 8), batch_size=4, **options)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(2)
        return [data.on_after_batch_transfer(batch) for batch in loader]

    expected = epoch()
    for options in ({"cache": "device"}, {"cache": "none"}, {"cache": "none", "workers": 2}, {"workers": 1}):
        for one, other in zip(expected, epoch(**options), strict=True):
            assert torch.equal(one["image"], other["image"]) and torch.equal(one["mask"], other["mask"])


def test_ram_cache_decodes_once_and_none_decodes_each_time() -> None:
    for cache, expected in (("ram", 12), ("none", 24)):
        source = FakeSource()
        data = SegmentationData(source, size=(6, 8), batch_size=4, cache=cache)  # type: ignore[arg-type]
        for _ in range(2):
            list(data.train_dataloader())
        assert source.reads == expected


def test_training_sees_what_train_batch_says(tmp_path: Path) -> None:
    data, task = SegmentationData(FakeSource(), batch_size=4), Probe()
    trainer(tmp_path).fit(task, data)
    assert len(task.seen) == 9 and len(task.validated) == 15
    for epoch, index, total, labels in task.seen:
        batch = data.train_batch(epoch, index)
        assert (float(batch["image"].double().sum()), int(batch["mask"].sum())) == (total, labels)


class Dump(Probe):
    """Writes what it saw to a file of its own process."""

    def on_train_end(self) -> None:
        folder = Path(self.trainer.default_root_dir)
        torch.save((self.seen, self.validated), folder / f"{self.trainer.world_size}-{self.global_rank}.pt")


def test_two_processes_see_what_one_sees(tmp_path: Path) -> None:
    """The real thing: Lightning must leave our samplers alone under DDP."""
    # In a process of its own: forking one whose thread pools have run can hang.
    done = warm.run([__file__, tmp_path])
    assert done.returncode == 0, done.stderr
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert len(one[0]) == len(two[0][0]) == 6
    for whole, first, second in zip(one[0], two[0][0], two[1][0], strict=True):
        assert whole[:2] == first[:2] == second[:2]
        assert whole[2] == pytest.approx(first[2] + second[2], rel=1e-4, abs=1e-2)
        assert whole[3] == first[3] + second[3]
    assert sorted(one[1]) == sorted(two[0][1] + two[1][1]) and len(one[1]) == 10


@pytest.mark.parametrize(("workers", "limit"), [(0, 3), (0, 4), (1, 3)])
def test_a_resumed_run_repeats_exactly(tmp_path: Path, workers: int, limit: int) -> None:
    class Keep(L.Callback):
        """A checkpoint wherever one may be written."""

        def _save(self, runner: L.Trainer, where: str) -> None:
            runner.save_checkpoint(tmp_path / f"{runner.global_step}-{where}.ckpt")

        def on_train_batch_end(self, runner: L.Trainer, *_: Any) -> None:
            self._save(runner, "step")

        def on_validation_end(self, runner: L.Trainer, *_: Any) -> None:
            self._save(runner, "val")

        def on_train_epoch_end(self, runner: L.Trainer, *_: Any) -> None:
            self._save(runner, "epoch")

    def run(callbacks: list[L.Callback], checkpoint: Path | None) -> list[tuple[Any, ...]]:
        data, task = SegmentationData(FakeSource(), batch_size=3, workers=workers), Probe()
        trainer(tmp_path, limit_train_batches=limit, callbacks=callbacks).fit(task, data, ckpt_path=checkpoint)
        return task.seen

    whole = run([Keep()], None)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(whole) == 3 * limit and len(checkpoints) == 3 * limit + 6
    for checkpoint in checkpoints if workers == 0 else checkpoints[4:6]:
        step = int(checkpoint.name.split("-")[0])
        assert run([], checkpoint) == whole[step:], checkpoint.name


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_any_precision_sees_the_same_views(tmp_path: Path, precision: Any) -> None:
    data, task = SegmentationData(FakeSource(), batch_size=4), Probe()
    trainer(tmp_path, max_epochs=1, precision=precision).fit(task, data)
    assert [seen[3] for seen in task.seen] == [int(data.train_batch(0, index)["mask"].sum()) for index in range(3)]


def test_overfit_batches_repeats_one_batch(tmp_path: Path) -> None:
    task = Probe()
    trainer(tmp_path, overfit_batches=1, max_epochs=2).fit(task, SegmentationData(FakeSource(), batch_size=4))
    assert len(task.seen) == 2 and task.seen[0][2:] == task.seen[1][2:]


def test_histogram_counts_labels_at_the_masks_own_resolution() -> None:
    source = FakeSource(mask_factor=2)
    data = SegmentationData(source, size=(6, 8))
    masks = np.stack([source.read_mask(sample) for sample in source.samples("train")])
    assert data.class_histogram().tolist() == [*(int((masks == k).sum()) for k in range(3)), 0]
    assert data.class_histogram().dtype == np.int64


def test_calibration_batches_are_plain_images_and_can_be_read_again() -> None:
    data = SegmentationData(FakeSource(), batch_size=4)
    found = data.calibration_batches(2)
    assert len(found) == 2 and len(data.calibration_batches(99)) == 3
    assert len({i for batch in found for i in ids(batch)}) == 8
    assert all(torch.equal(a, b) for a, b in zip(found, data.calibration_batches(2), strict=True))
    varied = SegmentationData(FakeSource(sizes=((12, 16), (9, 20))), batch_size=4, crop=(8, 8))
    assert varied.calibration_batches(1)[0].shape == (4, 3, 8, 8)
    few = SegmentationData(FakeSource(train=3), batch_size=4, size=(6, 8))
    assert [len(batch) for batch in few.calibration_batches(5)] == [3]


def test_train_ids_select_in_the_splits_order() -> None:
    data = SegmentationData(FakeSource(), batch_size=2, train_ids=("004", "001"), augment=Augment.none())
    assert sorted(ids(data.train_batch(0, 0)["image"])) == [1, 4]
    with pytest.raises(DataError, match=r"'01' is not in split 'train'.*Did you mean"):
        SegmentationData(FakeSource(), train_ids=("01",)).setup("fit")


def test_one_pixel_images_train() -> None:
    data = SegmentationData(FakeSource(sizes=((1, 1),)), batch_size=4, crop=(4, 6))
    batch = data.train_batch(0, 0)
    assert batch["image"].isfinite().all() and batch["image"].shape == (4, 3, 4, 6)
    assert batch["mask"].eq(255).any()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({"train": 0}, {}, "split 'train' holds no samples"),
        ({"train": 3}, {"batch_size": 4}, "only 3 training images.*at most 3"),
        ({"sizes": ((12, 16), (9, 20))}, {}, "'011' is 9x20.*`size`.*`crop`|'010' is 12x16.*`size`.*`crop`"),
        ({"sizes": ((12, 16), (9, 20))}, {"crop": (4, 4), "cache": "device"}, "one size"),
        ({"mask_factor": 2}, {}, "000.png: the mask is 24x32, its image 12x16"),
        ({}, {"batch_size": 0}, "batch_size is 0"),
        ({}, {"size": (0, 4)}, "size is"),
        ({}, {"cache": "disk"}, "cache is 'disk'"),
        ({}, {"seed": -1}, "seed is -1"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(source: Any, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SegmentationData(FakeSource(**source), **options).setup("fit")


def test_labels_outside_the_classes_are_named() -> None:
    source = FakeSource()
    source.classes = Classes(source.classes.names[:2], source.classes.colors[:2])
    with pytest.raises(DataError, match=r"train/000.png: label 2 is outside the 2 classes"):
        SegmentationData(source).setup("fit")


def test_worlds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="multiple of the 3 processes"):
        at_rank(SegmentationData(FakeSource(), batch_size=4), 0, 3).train_dataloader()
    with pytest.raises(DataError, match="5 validation images for 6 processes"):
        at_rank(SegmentationData(FakeSource()), 0, 6).val_dataloader()


def test_stateless_generator_depends_on_every_part_of_its_key() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    firsts = {torch.rand((), generator=batches_module.stateless_generator(*key)).item() for key in keys}
    assert len(firsts) == len(keys)


if __name__ == "__main__":
    for devices, strategy in ((2, "ddp_fork"), (1, "auto")):
        runner = trainer(Path(sys.argv[1]), devices=devices, strategy=strategy, max_epochs=2)
        runner.fit(Dump(), SegmentationData(FakeSource(), batch_size=4))
