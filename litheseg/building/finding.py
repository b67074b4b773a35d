"""Two fields of a recipe that can be found by trying: the batch size, and the learning rate for it.

The batch size doubles from 2 while memory holds the double, an epoch keeps four steps, and, above 8, images are trained
at least a tenth faster: where a larger batch saves no time, smaller ones take more steps in it. The learning rate is
that of a range test (Smith, "Cyclical learning rates for training neural networks", arXiv 1506.01186): it rises
exponentially over 100 steps, until the loss explodes; where the smoothed loss falls most steeply is the peak rate.

Both take steps of a network of their own, which is thrown away; a run with the found values is an ordinary one.

Usage:
    >>> recipe = with_found(recipe, Path("runs/slimseg"), batch_size=True, lr=True)
    >>> find_batch_size(recipe), find_lr(recipe, picture=Path("lr.png"))
    (16, 0.0012)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from litheseg.data.loading.datamodule import SegmentationData
from litheseg.errors import RecipeError, TrainingError
from litheseg.files import atomic_path
from litheseg.machine import free_memory
from litheseg.progress import Work, say, work
from litheseg.training.build import build_data, build_task
from litheseg.training.layout import on_cpu
from litheseg.training.ranks import is_first_process
from litheseg.training.recipe import Recipe
from litheseg.training.run import names_memory, set_up_torch
from litheseg.training.stages import missing_teachers
from litheseg.training.trainer import quiet

__all__ = ["find_batch_size", "find_lr", "processes", "steepest", "with_found"]

_FIRST, _USUAL = 2, 8  # images of a step: the fewest for batch norm; from here on only speed is a reason for more
_FASTER = 1.1
_FEWEST_STEPS = 4  # of an epoch
_SHARE_CPU, _SHARE_GPU = 0.5, 0.9  # of the free memory; on a CPU only what waits for the backward pass is counted
_WARMUP, _TIMED = 1, 3  # steps

_LOWEST, _HIGHEST, _STEPS = 1e-6, 10.0, 100
_SMOOTHING = 4.0  # steps
_EXPLODES = 4.0  # times the lowest loss so far
_LEARNS = 0.97  # of the first losses


def with_found(recipe: Recipe, folder: Path, *, batch_size: bool = False, lr: bool = False) -> Recipe:
    """The recipe of a run with values that are found by trying, once: a run that goes on has those of its beginning.

    Args:
        recipe: all other choices.
        folder: of the run; ``lr.png`` is written there.
        batch_size: find `data.batch_size`.
        lr: find `optimizer.lr`, for that batch size.

    Raises:
        TrainingError: nothing can be found; the message says why.
        LithesegError: whatever part of the recipe cannot be built.
    """
    begun = any((folder / name).exists() for name in ("checkpoints/last.ckpt", "model.safetensors"))
    if begun or not is_first_process():  # the first process has written the recipe before it starts others
        try:
            values = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        except OSError as error:
            raise TrainingError(
                f"{folder / 'recipe.yaml'}: {error.strerror}; find values with one process first"
            ) from error
        found = {"batch_size": values["data"]["batch_size"], "lr": values["optimizer"]["lr"]}
    else:
        found = {}
    if batch_size:
        recipe = _with_batch(recipe, found.get("batch_size") or find_batch_size(recipe))
    if lr:
        rate = found.get("lr") or find_lr(recipe, folder / "lr.png")
        recipe = replace(recipe, optimizer=replace(recipe.optimizer, lr=rate))
    return recipe


def _with_batch(recipe: Recipe, size: int) -> Recipe:
    return replace(recipe, data=replace(recipe.data, batch_size=size))


# --- batch size ------------------------------------------------------------------------------------------------------


def find_batch_size(recipe: Recipe) -> int:
    """Images of a step that use the machine well; see the module for the rule.

    Args:
        recipe: its batch size does not count. The result is that of all processes together.

    Raises:
        TrainingError: not even two images fit into memory.
        LithesegError: whatever part of the recipe cannot be built.
    """
    recipe = _with_batch(recipe, _FIRST)
    data, task = _begin(recipe)
    counts = [data.labelled_count, *([data.unlabelled_count] if recipe.data.unlabelled else [])]
    ranks = processes(recipe)
    size, last, reason = 0, _Trial(0.0, 0.0), "not even two images fit into memory"
    with work("finding the batch size") as display:
        while not (reason := _bound(2 * size or _FIRST, min(counts) // ranks, last)):
            data.batch_size = 2 * size or _FIRST
            display.advance(0, f"{data.batch_size} images")
            trial = _trial(recipe, data, task)
            if trial is None:
                reason = "more does not fit into memory"
                break
            if data.batch_size > _USUAL and trial.speed < _FASTER * last.speed:
                reason = f"{data.batch_size} train {trial.speed:.3g} images per second instead of {last.speed:.3g}"
                break
            size, last = data.batch_size, trial
    if not size:
        raise TrainingError("not even two images of a step fit into memory; lower --data.crop or --data.size")
    say(f"batch size {size * ranks}: {reason}")
    return size * ranks


@dataclass(frozen=True)
class _Trial:
    """A batch size that was tried: images per second, and the share of the memory that a step took."""

    speed: float
    memory: float


def _bound(size: int, images: int, last: _Trial) -> str:
    """Why a batch of this size need not be tried; "" if it may be the one."""
    if size > _FIRST and size * _FEWEST_STEPS > images:
        return f"{size} of {images} images would leave fewer than {_FEWEST_STEPS} steps in an epoch"
    return f"{size} would not fit into memory" if 2 * last.memory > 1 else ""


def _trial(recipe: Recipe, data: SegmentationData, task: L.LightningModule) -> _Trial | None:
    """Some steps of the data's batch size; None where memory does not suffice."""
    cpu = on_cpu(recipe.trainer)
    if cpu:
        memory = _SHARE_CPU * free_memory()
    else:
        torch.cuda.empty_cache()
        memory = _SHARE_GPU * (torch.cuda.mem_get_info()[0] + torch.cuda.memory_allocated())
        torch.cuda.reset_peak_memory_stats()
    meter = _Meter()
    try:
        with torch.autograd.graph.saved_tensors_hooks(meter.keep, lambda tensor: tensor):
            _take_steps(recipe, data, task, _WARMUP + _TIMED, meter)
    except (MemoryError, RuntimeError) as error:
        if not names_memory(error):
            raise
        return None
    needed = meter.kept if cpu else torch.cuda.max_memory_allocated()
    return _Trial(data.batch_size / min(meter.seconds[_WARMUP:]), needed / memory)


class _Meter(Callback):
    """Measures steps: seconds, and the bytes that wait for the backward pass."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.kept, self._storages, self._begin = 0, dict[int, int](), 0.0

    def keep(self, tensor: Tensor) -> Tensor:
        """Count what autograd saves, each storage once."""
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin."""
        self._storages.clear()
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End, when the device has done all."""
        outputs["loss"].item()
        self.seconds.append(time.perf_counter() - self._begin)
        self.kept = max(self.kept, sum(self._storages.values()))


# --- learning rate ---------------------------------------------------------------------------------------------------


def find_lr(recipe: Recipe, picture: Path | None = None) -> float:
    """The peak learning rate by a range test, rounded to two digits; see the module.

    Args:
        recipe: its learning rate does not count; the ratio of the encoder's to it is kept.
        picture: PNG of the curve to write.

    Raises:
        TrainingError: the loss falls at no rate.
        LithesegError: whatever part of the recipe cannot be built.
    """
    data, task = _begin(recipe)
    with work("finding the learning rate", _STEPS) as display:
        ramp = _Ramp(recipe.optimizer.lr, display)
        _take_steps(recipe, data, task, _STEPS, ramp)
    smooth, best = steepest(ramp.rates, ramp.losses)
    if best is None:
        raise TrainingError(
            f"the loss falls at no learning rate between {ramp.rates[0]:g} and {ramp.rates[-1]:g}; choose "
            "--optimizer.lr yourself, or see whether the labels fit the images with `litheseg doctor`"
        )
    rate = float(f"{ramp.rates[best]:.2g}")
    if picture is not None:
        _draw(picture, ramp, smooth, rate)
    say(f"learning rate {rate:g}" + (f" ({picture})" if picture is not None else ""))
    return rate


class _Ramp(Callback):
    """Raises the learning rate from step to step, until the loss explodes.

    Args:
        peak: the rate that the optimizer was built with.
        display: is told of each step.
    """

    def __init__(self, peak: float, display: Work) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._peak, self._display = peak, display

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate; the schedule has set its own before."""
        self.rates.append(_LOWEST * (_HIGHEST / _LOWEST) ** (len(self.rates) / (_STEPS - 1)))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rates[-1] * group["initial_lr"] / self._peak

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss."""
        loss = float(outputs["loss"])
        if not np.isfinite(loss) or loss > _EXPLODES * min(self.losses, default=np.inf):
            trainer.should_stop = True
            self.rates.pop()
        else:
            self.losses.append(loss)
            self._display.advance(1, f"loss {loss:.3f}")


def steepest(rates: Sequence[float], losses: Sequence[float]) -> tuple[np.ndarray, int | None]:
    """Where the loss falls most steeply over the logarithm of the rate, before it is lowest.

    Args:
        rates: increasing, > 0.
        losses: at each of them.

    Returns:
        The smoothed losses, and the index; None where they do not fall.
    """
    smooth = gaussian_filter1d(np.asarray(losses, np.float64), _SMOOTHING, mode="nearest")
    lowest = int(np.argmin(smooth))
    if lowest < 1 or smooth[lowest] > _LEARNS * smooth[0]:
        return smooth, None
    return smooth, int(np.argmin(np.gradient(smooth, np.log(rates))[: lowest + 1]))


def _draw(path: Path, ramp: _Ramp, smooth: np.ndarray, rate: float) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(ramp.rates, ramp.losses, color="0.7", label="loss of a step")
    axes.semilogx(ramp.rates, smooth, color="#0072B2", label="smoothed")
    axes.axvline(rate, color="#D55E00", linestyle="--", label=f"steepest: {rate:g}")
    axes.set(xlabel="learning rate", ylabel="loss", title="Learning-rate range test")
    axes.legend()
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


# --- steps -----------------------------------------------------------------------------------------------------------


def _begin(recipe: Recipe) -> tuple[SegmentationData, L.LightningModule]:
    if missing := missing_teachers(recipe):
        name = next(iter(missing))
        raise RecipeError(f"teachers.{name} is not trained yet, so no step can be tried; give --teachers.{name}.bundle")
    set_up_torch(recipe.trainer)
    data = build_data(recipe)
    return data, build_task(replace(recipe, trainer=replace(recipe.trainer, compile=False)), data)


def _take_steps(recipe: Recipe, data: SegmentationData, task: L.LightningModule, steps: int, watcher: Callback) -> None:
    config = recipe.trainer
    quiet()
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        precision=config.precision,
        accelerator=config.accelerator,
        devices=1,
        gradient_clip_val=recipe.optimizer.clip or None,
        limit_val_batches=0,
        callbacks=[watcher],
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    try:
        trainer.fit(task, data)
    except SystemExit as stop:  # Lightning makes it of Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise


def processes(recipe: Recipe) -> int:
    """Processes of a run, over all machines."""
    config = recipe.trainer
    if config.devices == "auto":
        return config.nodes * (1 if on_cpu(config) else torch.cuda.device_count())
    return config.nodes * int(config.devices)
