"""Choose the samples of each batch and the random numbers that augment them.

A batch is a pure function of (seed, epoch, index), the same in every worker and process. Hence a resumed run repeats
exactly, and each rank of a distributed run makes its own slice of the global batch. Loaders only enumerate batches.

An unlabelled image's CutMix partner is the next one of the global batch; the last one's is the first. With several
ranks, each therefore holds one image more than its share, used as partner only.

Usage:
    >>> plan = BatchPlan(batch_size=8, crop=(360, 480))
    >>> batch = TrainBatches(samples, plan)[3, 0]  # epoch 3, first batch: images, masks, parameters of their views
    >>> batch = TrainBatches(samples, plan, UnlabelledBatches(images, UnlabelledViews(), plan))[3, 0]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from litheseg.data.loading.cache import DecodedImages, DecodedSamples, SampleSize
from litheseg.data.loading.transforms import Augment, apply_views, image_views, normalise
from litheseg.data.loading.views import UnlabelledViews, draw_boxes
from litheseg.masks.image_format import ImageFormat

__all__ = [
    "BatchPlan",
    "CalibrationBatches",
    "EvalBatches",
    "TrainBatches",
    "UnlabelledBatches",
    "make_loader",
    "stateless_generator",
]

# Separate random streams: the sample order must not change when augmentation draws more numbers.
_ORDER, _VIEWS = 0, 1
_UNLABELLED_ORDER, _GEOMETRY, _COLOURS, _BOXES = 3, 4, 5, 6

_Key = tuple[int, int] | int  # (epoch, index); an index alone (from Lightning's `overfit_batches`) means epoch 0


def stateless_generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the non-negative integers in `key` only."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


@dataclass(frozen=True)
class BatchPlan:
    """What labelled and unlabelled training batches have in common.

    Attributes:
        batch_size: of the global batch, over all ranks.
        crop: (H, W) of the views.
        augment: how views differ from images; its colours do not apply to unlabelled images.
        seed: random seed, >= 0.
        rank: of this process.
        world: number of processes; divides `batch_size`.
        gather: False gives indices in place of the pixels, for a cache on the device.
        steps: batches per epoch; None for one pass over the samples. Passes follow each other regardless of epochs.
        normalisation: the format of the images; used only where views must be made here.
    """

    batch_size: int
    crop: tuple[int, int]
    augment: Augment = field(default_factory=Augment)
    seed: int = 0
    rank: int = 0
    world: int = 1
    gather: bool = True
    steps: int | None = None
    normalisation: ImageFormat = ImageFormat()  # noqa: RUF009 - frozen

    @property
    def rows(self) -> list[int]:
        """This rank's rows of the global batch."""
        return list(range(self.rank * self.batch_size // self.world, (self.rank + 1) * self.batch_size // self.world))

    def generator(self, *key: int) -> torch.Generator:
        """A generator for this seed and key."""
        return stateless_generator(self.seed, *key)


class _ShuffledPasses:
    """Global batches from repeated passes over all samples, each pass newly shuffled.

    The last, smaller batch of a pass is dropped.
    """

    def __init__(self, count: int, plan: BatchPlan, stream: int) -> None:
        self._count, self._plan, self._stream = count, plan, stream
        self._in_a_pass = count // plan.batch_size
        self.per_epoch = self._in_a_pass if plan.steps is None else plan.steps
        self._order: tuple[int, Tensor] | None = None

    def batch(self, epoch: int, index: int) -> list[int]:
        """The samples of a global batch."""
        turn, place = divmod(epoch * self.per_epoch + index, self._in_a_pass)
        if self._order is None or self._order[0] != turn:
            order = torch.randperm(self._count, generator=self._plan.generator(turn, self._stream))
            self._order = (turn, order)
        size = self._plan.batch_size
        return self._order[1][place * size : (place + 1) * size].tolist()


class TrainBatches(Dataset[dict[str, Tensor]]):
    """Training batches by (epoch, index); this rank's slice of each global batch.

    A batch is {"image": NCHW, "mask": uint8 NHW, "parameters": int32 N x 16}; its views are made on the device.
    The parameters are float32 stored as int32, because Lightning's half-precision plugins round floats only. Without
    `gather`, {"index": int64 N} replaces the pixels. Samples of unequal sizes are viewed here, since only crops can be
    stacked: {"image": float32 NChw, "mask": int64 Nhw}. The entries of unlabelled images are added.

    Args:
        samples: the training samples; of any sizes if they are cropped.
        plan: how batches are made.
        unlabelled: images without labels, whose number sets the length of an epoch; None for none.
    """

    def __init__(self, samples: DecodedSamples, plan: BatchPlan, unlabelled: UnlabelledBatches | None = None) -> None:
        self._samples, self._plan, self._unlabelled = samples, plan, unlabelled
        self._sizes = [size.image for size in samples.sizes()]
        self._same_size = len(set(self._sizes)) == 1
        self._passes = _ShuffledPasses(len(samples), plan, _ORDER)
        if unlabelled is not None:
            self._passes.per_epoch = len(unlabelled)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._passes.per_epoch

    def __getitem__(self, key: _Key) -> dict[str, Tensor]:
        """The batch of (epoch, index)."""
        epoch, index = (0, key) if isinstance(key, int) else key
        batch = self._labelled(epoch, index)
        return batch if self._unlabelled is None else batch | self._unlabelled[epoch, index]

    def _labelled(self, epoch: int, index: int) -> dict[str, Tensor]:
        plan, batch = self._plan, self._passes.batch(epoch, index)
        # Drawn for the global batch and cut afterwards: the global batch is the same for any number of ranks.
        draws = plan.augment.draw(plan.batch_size, plan.generator(epoch, index, _VIEWS))[plan.rows]
        chosen = [batch[row] for row in plan.rows]
        if not self._same_size:
            views = [self._viewed(i, draw[None]) for i, draw in zip(chosen, draws, strict=True)]
            return {"image": torch.cat([image for image, _ in views]), "mask": torch.cat([mask for _, mask in views])}
        parameters = plan.augment.resolve(draws, source=self._sizes[0], crop=plan.crop).view(torch.int32)
        if not plan.gather:
            return {"index": torch.tensor(chosen), "parameters": parameters}
        images, masks = zip(*(self._samples[i] for i in chosen), strict=True)
        return {"image": torch.stack(images), "mask": torch.stack(masks), "parameters": parameters}

    def _viewed(self, chosen: int, draws: Tensor) -> tuple[Tensor, Tensor]:
        (image, mask), plan = self._samples[chosen], self._plan
        parameters = plan.augment.resolve(draws, source=self._sizes[chosen], crop=plan.crop)
        return apply_views(image[None], mask[None], parameters, crop=plan.crop, normalisation=plan.normalisation)


class UnlabelledBatches(Dataset[dict[str, Tensor]]):
    """The unlabelled part of training batches by (epoch, index): this rank's n images and the last one's partner.

    A batch has M = n rows where the rank is alone and n + 1 otherwise: {"unlabelled": MCHW, "geometry": int32
    M x 16}, without `gather` {"unlabelled_index": int64 M, "geometry"}, or for images of unequal sizes, viewed here,
    {"weak": float32 MChw, "inside": bool Mhw}. Beside them "strong", int32 V x M x 13 (`UnlabelledViews.resolve` for V
    strong views), and "boxes", int32 V x n x K x 4. Parameters are float32 stored as int32.

    Args:
        images: the unlabelled images; of any sizes if they are cropped.
        views: how strong views differ from weak ones.
        plan: how batches are made.
    """

    def __init__(self, images: DecodedImages, views: UnlabelledViews, plan: BatchPlan) -> None:
        self._images, self._views, self._plan = images, views, plan
        self._augment = plan.augment.geometry_only()
        self._rows = plan.rows if plan.world == 1 else [*plan.rows, (plan.rows[-1] + 1) % plan.batch_size]
        self._sizes = images.sizes()
        self._same_size = len(set(self._sizes)) == 1
        self._passes = _ShuffledPasses(len(images), plan, _UNLABELLED_ORDER)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._passes.per_epoch

    def __getitem__(self, key: _Key) -> dict[str, Tensor]:
        """The part of the batch of (epoch, index)."""
        epoch, index = (0, key) if isinstance(key, int) else key
        batch, plan = self._passes.batch(epoch, index), self._plan
        draws = self._augment.draw(plan.batch_size, plan.generator(epoch, index, _GEOMETRY))[self._rows]
        return self._weak([batch[row] for row in self._rows], draws) | self._strong(epoch, index)

    def _weak(self, chosen: list[int], draws: Tensor) -> dict[str, Tensor]:
        """Pixels and geometry of the images, or their weak views."""
        if not self._same_size:
            views = [self._viewed(i, draw[None]) for i, draw in zip(chosen, draws, strict=True)]
            return {"weak": torch.cat([view for view, _ in views]), "inside": torch.cat([seen for _, seen in views])}
        parameters = self._augment.resolve(draws, source=self._sizes[0], crop=self._plan.crop).view(torch.int32)
        if not self._plan.gather:
            return {"unlabelled_index": torch.tensor(chosen), "geometry": parameters}
        return {"unlabelled": torch.stack([self._images[i] for i in chosen]), "geometry": parameters}

    def _viewed(self, chosen: int, draws: Tensor) -> tuple[Tensor, Tensor]:
        plan = self._plan
        parameters = self._augment.resolve(draws, source=self._sizes[chosen], crop=plan.crop)
        return image_views(self._images[chosen][None], parameters, crop=plan.crop, normalisation=plan.normalisation)

    def _strong(self, epoch: int, index: int) -> dict[str, Tensor]:
        """Colours and boxes of the strong views: drawn for the global batch, cut to this rank's rows."""
        views, plan = self._views, self._plan
        total = views.count * plan.batch_size
        colours = views.resolve(views.draw(total, plan.generator(epoch, index, _COLOURS)))
        boxes = draw_boxes(
            total, plan.generator(epoch, index, _BOXES), size=plan.crop, boxes=views.boxes, area=views.area
        )
        return {
            "strong": colours.view(views.count, plan.batch_size, -1)[:, self._rows].view(torch.int32),
            "boxes": boxes.view(views.count, plan.batch_size, views.boxes, 4)[:, plan.rows].int(),
        }


class EvalBatches(Dataset[dict[str, Tensor]]):
    """Evaluation batches by index: every sample in exactly one batch of one rank; the sizes in a batch are equal.

    A batch is {"image": float32 NChw normalised, "mask": int64 NHW}. Batches of one sample need no sizes, and so no
    pass over uncached files.
    """

    def __init__(
        self, samples: DecodedSamples, *, batch_size: int, rank: int = 0, world: int = 1, normalisation: ImageFormat
    ) -> None:
        self._samples, self._normalisation = samples, normalisation
        self._batches = [[i] for i in range(rank, len(samples), world)]
        if batch_size > 1:
            sizes = samples.sizes()
            # Dealt one by one, so that ranks differ by one sample at most; sorted by size, so that batches are full.
            groups: dict[SampleSize, list[int]] = defaultdict(list)
            for i in sorted(range(len(sizes)), key=lambda i: sizes[i])[rank::world]:
                groups[sizes[i]].append(i)
            self._batches = [
                group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)
            ]

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __getitem__(self, key: _Key) -> dict[str, Tensor]:
        """The batch at an index; the epoch of a key (epoch, index) does not matter."""
        chosen = self._batches[key if isinstance(key, int) else key[1]]
        images, masks = zip(*(self._samples[i] for i in chosen), strict=True)
        return {"image": normalise(torch.stack(images), self._normalisation), "mask": torch.stack(masks).long()}


class CalibrationBatches(Sequence[Tensor]):
    """Normalised training images without augmentation, float32 NCHW each; a fixed choice, made when read.

    Args:
        batches: image numbers of each batch; they count through `samples`, then through `others`.
        samples: labelled images.
        others: images without labels.
        crop: (H, W); images of unequal sizes are cut (or padded with the mean colour) to their middle of that size.
        normalisation: the format of the images.
    """

    def __init__(
        self,
        batches: Sequence[list[int]],
        samples: DecodedSamples,
        others: DecodedImages | None,
        *,
        crop: tuple[int, int],
        normalisation: ImageFormat,
    ) -> None:
        self._batches, self._samples, self._others = batches, samples, others
        self._crop, self._normalisation = crop, normalisation
        sizes = {size.image for size in samples.sizes()}
        self._same_size = len(sizes.union(others.sizes() if others is not None else ())) == 1

    def __len__(self) -> int:
        """How many batches."""
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        """The batch at an index, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        images = [self._image(i) for i in self._batches[index]]
        if self._same_size:
            return normalise(torch.stack(images), self._normalisation)
        return torch.cat([self._centre(image) for image in images])

    def _image(self, index: int) -> Tensor:
        if index < len(self._samples):
            return self._samples[index][0]
        assert self._others is not None
        return self._others[index - len(self._samples)]

    def _centre(self, image: Tensor) -> Tensor:
        middle = torch.full((1, 8), 0.5, dtype=torch.float64)
        parameters = Augment.none().resolve(middle, source=(image.shape[-2], image.shape[-1]), crop=self._crop)
        return image_views(image[None], parameters, crop=self._crop, normalisation=self._normalisation)[0]


def make_loader(
    batches: Dataset[dict[str, Tensor]], *, workers: int = 0, pin_memory: bool = False
) -> DataLoader[dict[str, Tensor]]:
    """A loader over all batches of an epoch, which `loader.sampler.set_epoch` chooses; resumable within an epoch."""
    return _Loader(
        batches,
        batch_size=None,  # the data set gives whole batches
        sampler=_Keys(batches),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # Without its own generator, a loader draws from the global one at each epoch.
        generator=torch.Generator(),
    )


class _Keys(DistributedSampler[Any]):
    """(epoch, index) for all batches of an epoch, beginning at `start`.

    A DistributedSampler, because Lightning neither wraps nor replaces those, and calls their `set_epoch`.
    """

    def __init__(self, batches: Any) -> None:
        super().__init__(batches, num_replicas=1, rank=0, shuffle=False)
        self.start = 0

    def __iter__(self) -> Iterator[Any]:
        yield from ((self.epoch, index) for index in range(self.start, len(self)))

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


class _Loader(DataLoader[dict[str, Tensor]]):
    """A DataLoader that goes on within an epoch after `load_state_dict`, which Lightning calls on resuming.

    No `__init__` of its own: Lightning must be able to build it again from DataLoader's arguments.
    """

    _place = (0, 0)  # epoch, batches given so far
    _resume = (-1, 0)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        epoch, start = getattr(self.sampler, "epoch", 0), 0
        if self._resume[0] == epoch:
            start = self._resume[1]
        self._resume = (-1, 0)
        if isinstance(self.sampler, _Keys):
            self.sampler.start = start
        for count, batch in enumerate(super().__iter__(), start + 1):
            self._place = (epoch, count)
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._place[0], "batches": self._place[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = (state["epoch"], state["batches"])
