"""Which samples make up a batch, and by which chance they are augmented: functions of (seed, epoch, index) only.

No state runs along with the training: any batch can be asked for at any time, in any worker or process, and is the
same. Hence a resumed run repeats exactly, and the ranks of a distributed run each make their own slice of one global
batch. The data loaders here only enumerate batches; they neither know files nor the device.

Usage:
    >>> batches = TrainBatches(samples, batch_size=8, augment=Augment(), crop=(360, 480), seed=0)
    >>> batch = batches[3, 0]  # epoch 3, first batch: uint8 images and masks, parameters of their views
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from litheseg.data.cache import DecodedImages, DecodedSamples
from litheseg.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Augment, apply_views, image_views, normalise

__all__ = ["CalibrationBatches", "EvalBatches", "ShuffledPasses", "TrainBatches", "make_loader", "stateless_generator"]

_ORDER, _VIEWS = 0, 1  # streams of chance: the order must not change because the augmentation draws more numbers


def stateless_generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the non-negative integers in `key` only."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


class ShuffledPasses:
    """Global batches out of pass after pass over all samples, each pass in an order of its own.

    Args:
        count: of the samples, at least `batch_size`.
        batch_size: samples per batch; the last, smaller batch of a pass is dropped.
        seed: >= 0.
        stream: of chance: a number that nothing else uses with this seed.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, stream: int) -> None:
        self.length = count // batch_size
        self._count, self._batch_size, self._seed, self._stream = count, batch_size, seed, stream
        self._order: tuple[int, Tensor] | None = None

    def batch(self, position: int) -> list[int]:
        """The samples of a batch by its position, which counts from the start of training and has no end."""
        turn, index = divmod(position, self.length)
        if self._order is None or self._order[0] != turn:
            generator = stateless_generator(self._seed, turn, self._stream)
            self._order = (turn, torch.randperm(self._count, generator=generator))
        return self._order[1][index * self._batch_size : (index + 1) * self._batch_size].tolist()


class TrainBatches(Dataset[dict[str, Tensor]]):
    """Training batches by (epoch, index); this rank's slice of each global batch.

    Args:
        samples: the training samples; of any sizes if a crop is given.
        batch_size: of the global batch, over all ranks.
        augment: how views differ from images.
        crop: (H, W) of the views.
        seed: >= 0.
        rank: of this process.
        world: number of processes; divides `batch_size`.
        gather: False leaves the pixels out and gives {"index": int64 N} in their place, for a cache on the device.
        steps: batches per epoch; None for one pass over the samples. Passes follow each other regardless of epochs.
        mean: per channel, for values in [0, 1]; used only where views must be made here (see below).
        std: likewise.

    A batch is {"image": uint8 N3HW, "mask": uint8 NHW, "parameters": int32 N x 16}, to be viewed on the device
    (with the parameters' `.view(torch.float32)`: Lightning's half-precision plugins round floats, but not integers).
    Samples of unequal sizes cannot be stacked before they are cropped: then it is {"image": float32 N3hw, "mask": int64
    Nhw}, viewed already.
    """

    def __init__(
        self,
        samples: DecodedSamples,
        *,
        batch_size: int,
        augment: Augment,
        crop: tuple[int, int],
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        gather: bool = True,
        steps: int | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        self._samples, self._batch_size, self._augment = samples, batch_size, augment
        self._crop, self._seed, self._gather, self._mean, self._std = crop, seed, gather, mean, std
        self._slice = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._sizes = [size.image for size in samples.sizes()]
        self._same_size = len(set(self._sizes)) == 1
        self._passes = ShuffledPasses(len(samples), batch_size, seed=seed, stream=_ORDER)
        self._steps = self._passes.length if steps is None else steps

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._steps

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Tensor]:
        """The batch of (epoch, index); an index alone is one of epoch 0 (Lightning's `overfit_batches` asks so)."""
        epoch, index = (0, key) if isinstance(key, int) else key
        chosen = self._passes.batch(epoch * len(self) + index)[self._slice]
        # Drawn for the global batch and cut afterwards: the global batch is the same for any number of ranks.
        generator = stateless_generator(self._seed, epoch, index, _VIEWS)
        draws = self._augment.draw(self._batch_size, generator)[self._slice]
        if not self._same_size:
            return self._viewed(chosen, draws)
        parameters = self._augment.resolve(draws, source=self._sizes[0], crop=self._crop).view(torch.int32)
        if not self._gather:
            return {"index": torch.tensor(chosen), "parameters": parameters}
        images, masks = zip(*(self._samples[i] for i in chosen), strict=True)
        return {"image": torch.stack(images), "mask": torch.stack(masks), "parameters": parameters}

    def _viewed(self, chosen: list[int], draws: Tensor) -> dict[str, Tensor]:
        views = []
        for i, draw in zip(chosen, draws, strict=True):
            image, mask = self._samples[i]
            parameters = self._augment.resolve(draw[None], source=self._sizes[i], crop=self._crop)
            views.append(
                apply_views(image[None], mask[None], parameters, crop=self._crop, mean=self._mean, std=self._std)
            )
        images, masks = zip(*views, strict=True)
        return {"image": torch.cat(images), "mask": torch.cat(masks)}


class EvalBatches(Dataset[dict[str, Tensor]]):
    """Evaluation batches by index: every sample in exactly one batch of one rank, only equal sizes side by side.

    A batch is {"image": float32 N3hw normalised, "mask": int64 NHW}; see `TrainBatches` for the arguments. Batches of
    one sample need no sizes beforehand, hence no pass over files that are not kept.
    """

    def __init__(
        self,
        samples: DecodedSamples,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        self._samples, self._mean, self._std = samples, mean, std
        self._batches = self._deal(batch_size, rank, world)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Tensor]:
        """The batch at an index; the epoch of a key (epoch, index) does not matter."""
        chosen = self._batches[key if isinstance(key, int) else key[1]]
        images, masks = zip(*(self._samples[i] for i in chosen), strict=True)
        return {"image": normalise(torch.stack(images), self._mean, self._std), "mask": torch.stack(masks).long()}

    def _deal(self, batch_size: int, rank: int, world: int) -> list[list[int]]:
        if batch_size == 1:
            return [[i] for i in range(rank, len(self._samples), world)]
        sizes = self._samples.sizes()
        # Dealt one by one, so that ranks differ by one sample at most; sorted by size, so that batches are full.
        mine = sorted(range(len(sizes)), key=lambda i: sizes[i])[rank::world]
        groups: dict[Any, list[int]] = defaultdict(list)
        for i in mine:
            groups[sizes[i]].append(i)
        return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


class CalibrationBatches(Sequence[Tensor]):
    """Normalised training images without augmentation, float32 N3HW each; a fixed choice, made when it is read.

    The numbers in a batch count through the samples, and then through the others: images without labels. Images of
    unequal sizes are cut (or padded with the mean colour) to the middle `crop`.
    """

    def __init__(
        self, batches: Sequence[list[int]], samples: DecodedSamples, others: DecodedImages | None = None, **view: Any
    ) -> None:
        self._batches, self._samples, self._others, self._view = batches, samples, others, view
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
            return normalise(torch.stack(images), self._view["mean"], self._view["std"])
        return torch.cat([self._centre(image) for image in images])

    def _image(self, index: int) -> Tensor:
        if index < len(self._samples):
            return self._samples[index][0]
        assert self._others is not None
        return self._others[index - len(self._samples)]

    def _centre(self, image: Tensor) -> Tensor:
        middle = torch.full((1, 8), 0.5, dtype=torch.float64)
        source = (image.shape[-2], image.shape[-1])
        parameters = Augment.none().resolve(middle, source=source, crop=self._view["crop"])
        return image_views(image[None], parameters, **self._view)[0]


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
        # Without a generator of its own, a loader takes a number from the global one at each epoch.
        generator=torch.Generator(),
    )


class _Keys(DistributedSampler[Any]):
    """(epoch, index) for all batches of an epoch, beginning at `start`.

    It is a DistributedSampler because that is how Lightning knows samplers that must not be wrapped or replaced, and
    whose `set_epoch` it calls.
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
