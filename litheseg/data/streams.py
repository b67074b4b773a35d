"""Unlabelled images in a training batch, beside the labelled ones: which, with what views, mixed with whom.

As in `batches`, everything is a function of (seed, epoch, index), and the global batch is the same for any number of
ranks. An image's partner in CutMix is the next one of the global batch, the first for the last. So a rank holds one
image more than its share, which serves as partner only; alone it has the whole ring.

It does not know files; `mixed_views`, which runs on the device, does not know batches either.

Usage:
    >>> views = UnlabelledViews(jitter=0.8)
    >>> unlabelled = UnlabelledBatches(images, batch_size=8, augment=Augment(), views=views, crop=(360, 480))
    >>> batch = SemiSupervisedBatches(labelled, unlabelled)[3, 0]  # epoch 3, first batch: see `UnlabelledBatches`
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from litheseg.data.batches import ShuffledPasses, TrainBatches, stateless_generator
from litheseg.data.cache import DecodedImages
from litheseg.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Augment, image_views
from litheseg.data.views import UnlabelledViews, box_mask, cut_mix, draw_boxes, strong_view

__all__ = ["SemiSupervisedBatches", "UnlabelledBatches", "mixed_views"]

_ORDER, _GEOMETRY, _COLOURS, _BOXES = 3, 4, 5, 6  # streams of chance apart from those of labelled batches


class UnlabelledBatches(Dataset[dict[str, Tensor]]):
    """The unlabelled part of training batches by (epoch, index): this rank's n images and the last one's partner.

    Args:
        images: the unlabelled images; of any sizes if a crop is given.
        batch_size: of the global batch, over all ranks.
        augment: how weak views differ from images; its colours do not count.
        views: how strong views differ from weak ones.
        crop: (H, W) of the views.
        seed: >= 0.
        rank: of this process.
        world: number of processes; divides `batch_size`.
        gather: False gives {"unlabelled_index": int64 M} in place of the pixels, for a cache on the device.
        steps: batches per epoch; None for one pass over the images.
        mean: per channel, for values in [0, 1]; used only where views must be made here (see below).
        std: likewise.

    A batch has M = n rows where the rank is alone and n + 1 otherwise: {"unlabelled": uint8 M3HW, "geometry": int32
    M x 16}, or for images of unequal sizes, viewed here, {"weak": float32 M3hw, "inside": bool Mhw}. Beside them
    "strong", int32 V x M x 13 (`UnlabelledViews.resolve` for V strong views), and "boxes", int32 V x n x K x 4.
    Parameters are floats to be had by `.view(torch.float32)`, as in `TrainBatches`.
    """

    def __init__(
        self,
        images: DecodedImages,
        *,
        batch_size: int,
        augment: Augment,
        views: UnlabelledViews,
        crop: tuple[int, int],
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        gather: bool = True,
        steps: int | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        self._images, self._batch_size, self._views = images, batch_size, views
        self._augment, self._crop, self._seed, self._gather = augment.geometry_only(), crop, seed, gather
        self._mean, self._std = mean, std
        self._own = list(range(rank * batch_size // world, (rank + 1) * batch_size // world))
        self._rows = self._own if world == 1 else [*self._own, (self._own[-1] + 1) % batch_size]
        self._sizes = images.sizes()
        self._same_size = len(set(self._sizes)) == 1
        self._passes = ShuffledPasses(len(images), batch_size, seed=seed, stream=_ORDER)
        self._steps = self._passes.length if steps is None else steps

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._steps

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Tensor]:
        """The part of the batch of (epoch, index); an index alone is one of epoch 0."""
        epoch, index = (0, key) if isinstance(key, int) else key
        batch = self._passes.batch(epoch * len(self) + index)
        draws = self._augment.draw(self._batch_size, stateless_generator(self._seed, epoch, index, _GEOMETRY))
        chosen = [batch[row] for row in self._rows]
        return self._weak(chosen, draws[self._rows]) | self._strong(epoch, index)

    def _weak(self, chosen: list[int], draws: Tensor) -> dict[str, Tensor]:
        """Pixels and geometry of the images, or their weak views."""
        if not self._same_size:
            views = [self._viewed(i, draw[None]) for i, draw in zip(chosen, draws, strict=True)]
            return {
                "weak": torch.cat([view for view, _ in views]),
                "inside": torch.cat([inside for _, inside in views]),
            }
        parameters = self._augment.resolve(draws, source=self._sizes[0], crop=self._crop).view(torch.int32)
        if not self._gather:
            return {"unlabelled_index": torch.tensor(chosen), "geometry": parameters}
        return {"unlabelled": torch.stack([self._images[i] for i in chosen]), "geometry": parameters}

    def _viewed(self, chosen: int, draws: Tensor) -> tuple[Tensor, Tensor]:
        parameters = self._augment.resolve(draws, source=self._sizes[chosen], crop=self._crop)
        return image_views(self._images[chosen][None], parameters, crop=self._crop, mean=self._mean, std=self._std)

    def _strong(self, epoch: int, index: int) -> dict[str, Tensor]:
        """Colours and boxes of the strong views: drawn for the global batch, cut to this rank's rows."""
        views, total = self._views, self._views.count * self._batch_size
        colours = views.resolve(views.draw(total, stateless_generator(self._seed, epoch, index, _COLOURS)))
        generator = stateless_generator(self._seed, epoch, index, _BOXES)
        boxes = draw_boxes(total, generator, size=self._crop, boxes=views.boxes, area=views.area)
        return {
            "strong": colours.view(views.count, self._batch_size, -1)[:, self._rows].view(torch.int32),
            "boxes": boxes.view(views.count, self._batch_size, views.boxes, 4)[:, self._own].int(),
        }


class SemiSupervisedBatches(Dataset[dict[str, Tensor]]):
    """Labelled and unlabelled parts of equally many batches, joined."""

    def __init__(self, labelled: TrainBatches, unlabelled: UnlabelledBatches) -> None:
        assert len(labelled) == len(unlabelled)
        self._labelled, self._unlabelled = labelled, unlabelled

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._unlabelled)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Tensor]:
        """The batch of (epoch, index)."""
        return self._labelled[key] | self._unlabelled[key]


def mixed_views(
    weak: Tensor,
    inside: Tensor,
    *,
    parameters: Tensor,
    boxes: Tensor,
    views: UnlabelledViews,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> dict[str, Tensor]:
    """What a task gets of unlabelled images; on CUDA nothing in it waits for the device.

    Args:
        weak: float M3hw, normalised; row n is the partner of row n - 1, if M is n + 1.
        inside: bool Mhw, False in the padding outside the image.
        parameters: float32 V x M x 13 from `UnlabelledViews.resolve`.
        boxes: integers V x n x K x 4 from `draw_boxes`.
        views: whose parameters they are.
        mean: per channel, for values in [0, 1].
        std: likewise.

    Returns:
        {"weak": M3hw, "inside": bool Mhw, "mixed": V n 3 h w, strong views mixed with their partners',
        "cut": bool V n h w, True where a pixel is the partner's, "partner": int64 n, rows of "weak"}.
    """
    partner = torch.arange(1, boxes.shape[1] + 1, device=weak.device) % len(weak)
    cut = box_mask(boxes, (weak.shape[-2], weak.shape[-1]))
    strong = [
        strong_view(weak, own, inside, mean, std, reach=views.reach) if views.recolours else weak for own in parameters
    ]
    mixed = torch.stack([cut_mix(view, where, partner) for view, where in zip(strong, cut, strict=True)])
    return {"weak": weak, "inside": inside, "mixed": mixed, "cut": cut, "partner": partner}
