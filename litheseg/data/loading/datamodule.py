"""Batches for Lightning: decoded once, cached as uint8, augmented on the device, the same on every run.

Everything random depends on (seed, epoch, batch index) alone: a resumed run repeats exactly, also from the middle of an
epoch. `batch_size` is that of the *global* batch: each of `world` processes gets batch_size / world of its samples,
with the same views as in a single process. Global random generators are not used. In a distributed run each process
decodes its own cache.

Images without labels can come beside the labelled ones, each with weak and strong views of one geometry (see `views`).

Usage:
    >>> data = SegmentationData(open_source("camvid", "data/camvid"), size=(360, 480), batch_size=8)
    >>> L.Trainer(max_epochs=10).fit(task, data)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from litheseg.data.loading.batches import (
    BatchPlan,
    CalibrationBatches,
    EvalBatches,
    TrainBatches,
    UnlabelledBatches,
    make_loader,
    stateless_generator,
)
from litheseg.data.loading.cache import DecodedImages, DecodedSamples
from litheseg.data.loading.transforms import Augment, apply_views, image_views
from litheseg.data.loading.views import UnlabelledViews, mixed_views
from litheseg.data.sources.base import Sample, Source
from litheseg.data.sources.statistics import measured_format
from litheseg.data.sources.unlabelled import Unlabelled
from litheseg.errors import DataError, did_you_mean
from litheseg.masks.image_format import ImageFormat

__all__ = ["SegmentationData"]

_CALIBRATION = 2  # a stream of random numbers apart from those in `batches`


class SegmentationData(L.LightningDataModule):
    """Training and validation batches of one source.

    Training batches reach the task as {"image": float32 NChw normalised, "mask": int64 Nhw} at `crop`; validation
    batches as {"image": float32 NCHW, "mask": int64 NHW}, the image at `size`, the mask at its own full resolution.

    With unlabelled images, as many as labelled ones, a training batch also holds {"weak": float32 MChw, geometry only,
    "inside": bool Mhw, False in the padding, "mixed": float32 V n C h w, V strong views after CutMix, "cut": bool
    V n h w, True where a pixel is the partner's, "partner": int64 n, rows of "weak"}; see `batches` for M and n. An
    epoch is then one pass over the unlabelled images; the labelled ones repeat as often as needed.

    Args:
        source: images and masks.
        size: (H, W) that images and training masks are resized to when decoded; None: their own size.
        batch_size: images per step over all processes; their number divides it.
        eval_batch_size: images per validation batch and process; only images of equal size share a batch.
        crop: (H, W) of training views; None: `size`, or the images' own size where it is the same for all.
        augment: how training views differ from their images.
        cache: "ram": keep samples in RAM; "device": and training samples on the device; "none": decode each time.
        workers: processes that make batches; worth it for cache="none" only.
        val_split: name of the validation split.
        train_ids: the training samples to use; None: all.
        seed: of order and augmentation, >= 0.
        images: their format, by which they are normalised; None for the source's own (`measured_format`).
        unlabelled: images to train on without labels; None for none.
        views: how their strong views differ from weak ones.
        steps: batches per epoch; None for one pass over the unlabelled images, or over the labelled ones without them.
        unreadable: the largest share of unlabelled files that may be left out because they cannot be read, in [0, 1].

    Raises:
        DataError: a value outside its range; on use, what does not fit the source.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: tuple[int, int] | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 4,
        crop: tuple[int, int] | None = None,
        augment: Augment | None = None,
        cache: Literal["ram", "device", "none"] = "ram",
        workers: int = 0,
        val_split: str = "val",
        train_ids: Sequence[str] | None = None,
        seed: int = 0,
        images: ImageFormat | None = None,
        unlabelled: Unlabelled | None = None,
        views: UnlabelledViews | None = None,
        steps: int | None = None,
        unreadable: float = 0.1,
    ) -> None:
        super().__init__()
        _check_counts(batch_size=batch_size, eval_batch_size=eval_batch_size, steps=steps, seed=seed)
        for name, value in (("size", size), ("crop", crop)):
            if value is not None and (len(value) != 2 or min(value) < 1):
                raise DataError(f"{name} is {value}; give (height, width) in pixels, such as (360, 480)")
        if not 0 <= unreadable <= 1:
            raise DataError(f"unreadable is {unreadable}; give the share of files that may be left out, in [0, 1]")
        if cache not in ("ram", "device", "none"):
            raise DataError(f"cache is '{cache}'.{did_you_mean(cache, ('ram', 'device', 'none'))}")
        self.source, self.augment = source, augment or Augment()
        # A recipe file gives lists.
        self.size = (size[0], size[1]) if size else None
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed = seed
        self._crop = (crop[0], crop[1]) if crop else None
        self._cache, self._workers = cache, 0 if cache == "device" else workers
        self._splits, self._train_ids = {"train": "train", "val": val_split}, train_ids
        self._decoded: dict[str, DecodedSamples] = {}
        self._on_device: dict[str, tuple[Tensor, ...]] = {}
        self.unlabelled, self.views = unlabelled, views or UnlabelledViews()
        self._steps, self._unreadable = steps, unreadable
        self._unlabelled_images: DecodedImages | None = None
        self._format, self._checked = images, False

    @property
    def images(self) -> ImageFormat:
        """The format of the images; measured at the first call.

        Raises:
            DataError: the source holds other images than the format that was asked for.
        """
        if self._format is None:
            self._format = measured_format(self.source)
        elif not self._checked and self.source.images.kind != self._format.kind:
            raise DataError(
                f"the images of '{self.source.name}' have {self.source.images}, but the network takes {self._format}; "
                "give it images like those that it was trained on"
            )
        self._checked = True
        return self._format

    @property
    def classes(self) -> Any:
        """The source's classes."""
        return self.source.classes

    @property
    def crop(self) -> tuple[int, int]:
        """(H, W) of training views.

        Raises:
            DataError: images differ in size, and neither `size` nor `crop` is given.
        """
        if self._crop is None:
            self._crop = self.size or self._common_size()
        return self._crop

    @property
    def labelled_count(self) -> int:
        """Labelled training images."""
        return len(self._samples("train"))

    @property
    def validation_count(self) -> int:
        """Labelled images to validate on."""
        return len(self._samples("val"))

    @property
    def unlabelled_count(self) -> int:
        """Number of unlabelled training images that can be read; decodes them once."""
        return len(self._images()) if self.unlabelled is not None else 0

    @property
    def steps_per_epoch(self) -> int:
        """Training batches per epoch."""
        return len(self._train_batches())

    def setup(self, stage: str | None = None) -> None:
        """Decode and check what the stage needs; called by Lightning."""
        if stage in (None, "fit"):
            self._train_batches()  # fails before the long decoding
            self._samples("train").load()
        self._samples("val").load()

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches before augmentation, which `on_after_batch_transfer` adds on the device."""
        return make_loader(self._train_batches(), workers=self._workers, pin_memory=self._on_cuda())

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches as the task gets them; over all processes each sample comes exactly once."""
        samples, (rank, world) = self._samples("val"), self._rank_of_world()
        if len(samples) < world:
            raise DataError(f"{len(samples)} validation images for {world} processes; use at most {len(samples)}")
        batches = EvalBatches(
            samples, batch_size=self.eval_batch_size, rank=rank, world=world, normalisation=self.images
        )
        return make_loader(batches, workers=self._workers, pin_memory=self._on_cuda())

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Make the views of a training batch where it is now; other batches pass."""
        if not isinstance(batch, dict) or not {"parameters", "boxes"} & batch.keys():
            return batch
        with torch.no_grad():
            views = self._labelled_views(batch)
            if "boxes" in batch:
                views |= self._unlabelled_views(batch)
        if self.trainer is not None:  # Lightning converted the batch to a "-true" precision before the views were made
            views = self.trainer.precision_plugin.convert_input(views)
        return views

    def train_batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        """This process's slice of a training batch, augmented, on the CPU; the same as in training."""
        return self.on_after_batch_transfer(self._train_batches()[epoch, index])

    def calibration_batches(self, count: int = 32) -> Sequence[Tensor]:
        """At most `count` batches of normalised training images without augmentation, each float32 NCHW on the CPU.

        A fixed random choice from labelled and unlabelled images, the same in every process, at `size` (images of
        unequal sizes: the middle `crop`); made when read, so it can be read again for each width. Fewer when there
        are not enough training images.
        """
        samples, others = self._samples("train"), self._images() if self.unlabelled is not None else None
        total = len(samples) + self.unlabelled_count
        order = torch.randperm(total, generator=stateless_generator(self.seed, 0, _CALIBRATION)).tolist()
        last = min(count * self.batch_size, max(total // self.batch_size, 1) * self.batch_size)
        batches = [order[i : i + self.batch_size] for i in range(0, last, self.batch_size)]
        return CalibrationBatches(batches, samples, others, crop=self.crop, normalisation=self.images)

    def class_histogram(self) -> np.ndarray:
        """int64 [K]: pixels per class over the training masks at their own resolution, ignored ones left out."""
        return self._samples("train").histogram().copy()

    def class_facts(self) -> dict[str, Any]:
        """For JSON: "class_shares" of the labelled training pixels, "class_images" that hold each, "train_images"."""
        counts = self.class_histogram()
        shares = (counts / max(1, int(counts.sum()))).round(6).tolist()
        images = self._samples("train").holding().tolist()
        return {"class_shares": shares, "class_images": images, "train_images": self.labelled_count}

    def absent_classes(self) -> tuple[str, ...]:
        """Names of the classes without a pixel in the labelled training masks; they cannot be learned."""
        return tuple(self.classes.names[i] for i in np.flatnonzero(self.class_histogram() == 0))

    def _samples(self, part: str) -> DecodedSamples:
        """The decoded samples of "train" or "val", made at first use."""
        if part not in self._decoded:
            split = self._splits[part]
            samples = self.source.samples(split)
            if part == "train" and self._train_ids is not None:
                samples = _select(samples, self._train_ids, split)
            elif part == "train" and self.unlabelled is not None:
                samples = tuple(sample for sample in samples if sample.labelled)
            if not samples:
                raise DataError(f"split '{split}' holds no samples; add images or name another split")
            how: dict[str, Any] = {"keep": self._cache != "none", "quiet": self._quiet()}
            decoded = DecodedSamples(self.source, samples, size=self.size, resize_masks=part == "train", **how)
            self._decoded[part] = decoded
        return self._decoded[part]

    def _images(self) -> DecodedImages:
        """The decoded unlabelled images, made at first use."""
        if self._unlabelled_images is None:
            assert self.unlabelled is not None
            how: dict[str, Any] = {"keep": self._cache != "none", "quiet": self._quiet()}
            self._unlabelled_images = DecodedImages(self.unlabelled, size=self.size, unreadable=self._unreadable, **how)
        return self._unlabelled_images

    def _common_size(self) -> tuple[int, int]:
        train = self._samples("train")
        sizes = {size.image: sample.id for size, sample in zip(train.sizes(), train.samples, strict=True)}
        if len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise DataError(
                f"training images differ in size ('{first}' is {one[0]}x{one[1]}, '{second}' is {other[0]}x{other[1]}, "
                "height x width); give `size` to resize them or `crop` to cut views of one size"
            )
        return next(iter(sizes))

    def _train_batches(self) -> TrainBatches:
        """The batches of this process."""
        samples, (rank, world) = self._samples("train"), self._rank_of_world()
        self._check_fits("training", len(samples), [size.image for size in samples.sizes()])
        if self.batch_size % world:
            raise DataError(
                f"batch_size {self.batch_size} (of all processes) must be a multiple of the {world} processes"
            )
        _check_pairs(samples)
        plan = BatchPlan(
            self.batch_size,
            self.crop,
            self.augment.for_images(self.images),
            self.seed,
            rank=rank,
            world=world,
            gather=self._cache != "device",
            steps=self._steps,
            normalisation=self.images,
        )
        if self.unlabelled is None:
            return TrainBatches(samples, plan)
        images = self._images()
        self._check_fits("unlabelled", len(images), images.sizes())
        return TrainBatches(samples, plan, UnlabelledBatches(images, self.views.for_images(self.images), plan))

    def _check_fits(self, kind: str, count: int, sizes: Sequence[tuple[int, int]]) -> None:
        if count < self.batch_size:
            raise DataError(
                f"batch_size is {self.batch_size}, but there are only {count} {kind} images; "
                f"use a batch_size of at most {count}, or more images"
            )
        if self._cache == "device" and len(set(sizes)) > 1:
            raise DataError("cache='device' needs images of one size; give `size`, or use cache='ram'")

    def _labelled_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Image and mask of a batch, made here unless the loader had to."""
        if "parameters" not in batch:
            return {"image": batch["image"], "mask": batch["mask"]}
        if "index" in batch:
            image, mask = self._gathered("train", batch["index"])
        else:
            image, mask = batch["image"], batch["mask"]
        parameters = batch["parameters"].view(torch.float32)
        view, labels = apply_views(image, mask, parameters, crop=self.crop, normalisation=self.images)
        return {"image": view, "mask": labels}

    def _unlabelled_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weak and mixed views of a batch's unlabelled images."""
        if "geometry" in batch:
            found = "unlabelled_index" in batch
            image = self._gathered("unlabelled", batch["unlabelled_index"])[0] if found else batch["unlabelled"]
            geometry = batch["geometry"].view(torch.float32)
            weak, inside = image_views(image, geometry, crop=self.crop, normalisation=self.images)
        else:
            weak, inside = batch["weak"], batch["inside"]
        return mixed_views(
            weak,
            inside,
            parameters=batch["strong"].view(torch.float32),
            boxes=batch["boxes"],
            views=self.views.for_images(self.images),
            normalisation=self.images,
        )

    def _gathered(self, part: str, index: Tensor) -> tuple[Tensor, ...]:
        """Images (and masks) out of the cache on the device of `index`, which is filled at the first call."""
        kept = self._on_device.get(part)
        if kept is None or kept[0].device != index.device:
            samples: Any = self._samples("train") if part == "train" else self._images()
            rows = [samples[i] for i in range(len(samples))]
            stacks: Any = zip(*rows, strict=True) if part == "train" else [rows]
            kept = tuple(torch.stack(stack).to(index.device) for stack in stacks)
            # PyTorch promises little of uint16 on devices.
            kept = tuple(values.float() if values.dtype == torch.uint16 else values for values in kept)
            self._on_device[part] = kept
        return tuple(values.index_select(0, index) for values in kept)

    def _quiet(self) -> bool:
        """Whether another process speaks to the user."""
        return self._rank_of_world()[0] > 0 or getattr(rank_zero_only, "rank", 0) > 0

    def _rank_of_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _check_counts(*, seed: int, **counts: int | None) -> None:
    """Refuse numbers that cannot work whatever the source is."""
    for name, value, least in (*((name, value, 1) for name, value in counts.items()), ("seed", seed, 0)):
        if value is not None and value < least:
            raise DataError(f"{name} is {value}; give an integer >= {least}")


def _select(samples: Sequence[Sample], ids: Sequence[str], split: str) -> tuple[Sample, ...]:
    """The samples of these ids, in the split's order, so that the order of a list file does not matter."""
    known = {sample.id for sample in samples}
    for name in ids:
        if name not in known:
            raise DataError(f"train_ids: '{name}' is not in split '{split}'.{did_you_mean(name, known)}")
    chosen = set(ids)
    return tuple(sample for sample in samples if sample.id in chosen)


def _check_pairs(samples: DecodedSamples) -> None:
    """Training geometry is drawn once for image and mask, so they must have one size."""
    for sample, size in zip(samples.samples, samples.sizes(), strict=True):
        if size.image != size.mask:
            raise DataError(
                f"{sample.mask or sample.id}: the mask is {size.mask[0]}x{size.mask[1]}, its image "
                f"{size.image[0]}x{size.image[1]} (height x width); mend the file, or give `size` to resize both"
            )
