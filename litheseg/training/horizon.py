"""The end of a run, which may move while the run goes on: to stop in time, or because other epochs are asked for.

Everything that changes over a run (learning rate, warm-ups, the grouping schedule) follows a plan of so many steps.
When the end moves, the rest of the plan is gone through faster or slower, without a jump: a run that is cut short still
ends at the lowest learning rate, and fully grouped. `Deadline` moves the end. Checkpoints hold it, so that a resumed
run follows the same plan.

Usage:
    >>> horizon = Horizon(1000)
    >>> horizon.move_end(after=400, end=700)
    >>> horizon.at(400), horizon.at(550), horizon.at(700)
    (400.0, 700.0, 1000.0)
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from litheseg.errors import TrainingError
from litheseg.progress import say
from litheseg.training.config import TrainerConfig
from litheseg.training.ranks import is_first_process
from litheseg.training.storage import read_checkpoint

__all__ = ["Deadline", "Horizon", "epochs_to_finish", "is_over"]

_FIRST_STEPS = 8  # whose time foretells that of an epoch, after one that is slower
_WORTH_MORE = 1.1  # times the epochs that are planned now: so many must be possible before the end moves back
_VAL_STEP = 0.5  # of the time of a training image: an image of val, until val has been seen


class Horizon:
    """How far a run is in its plan.

    Args:
        total: steps of the plan.
    """

    def __init__(self, total: int) -> None:
        self._knots: list[tuple[int, float]] = [(0, 0.0), (total, float(total))]  # (step of the run, of the plan)

    @property
    def total(self) -> int:
        """Steps of the plan; it never changes."""
        return int(self._knots[-1][1])

    @property
    def end(self) -> int:
        """Steps after which the run is over."""
        return self._knots[-1][0]

    def at(self, step: int) -> float:
        """The step of the plan, in [0, `total`], that a step of the run stands for: the same until the end is moved."""
        for (first, before), (last, after) in zip(self._knots, self._knots[1:], strict=False):
            if step < last:
                return before + (step - first) * ((after - before) / (last - first))
        return self._knots[-1][1]

    def move_end(self, after: int, end: int) -> None:
        """Let the run be over after `end` steps, of which `after` are done."""
        done = [knot for knot in self._knots[:-1] if knot[0] < after]
        self._knots = [*done, (after, self.at(after)), (max(after, end), float(self.total))]

    def state(self) -> list[list[float]]:
        """For a checkpoint."""
        return [list(knot) for knot in self._knots]

    def restore(self, state: list[list[float]]) -> None:
        """From a checkpoint."""
        self._knots = [(int(step), planned) for step, planned in state]


class Deadline(Callback):
    """Ends a run in time, and after the epochs that are asked for now; the plan is followed to its end in any case.

    Args:
        config: its epochs and minutes count.
        horizon: of the run.
        steps: of an epoch.
        val_share: images of val per training image of an epoch.

    Raises:
        TrainingError: when the first steps show that not even one epoch is possible.
    """

    def __init__(self, config: TrainerConfig, horizon: Horizon, steps: int, val_share: float) -> None:
        self._config, self._horizon, self._steps, self._val_share = config, horizon, steps, val_share
        self._asked = {"epochs": config.epochs, "minutes": config.minutes}
        self._loaded = self._asked
        self._before = 0.0  # seconds of training in earlier processes
        self._start = self._epoch_start = self._first_step = 0.0
        self._seen = 0  # steps in this process
        self._validated = self._in_val = self._val_start = 0.0  # seconds: the last validation, this epoch's so far

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The plan, what was asked for, and how long training has taken."""
        return {"horizon": self._horizon.state(), "seconds": self._elapsed(), **self._asked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Follow the plan of the checkpoint, unless something else is asked for now."""
        self._horizon.restore(state_dict["horizon"])
        self._before = state_dict["seconds"]
        self._loaded = {name: state_dict[name] for name in self._asked}

    # --- training ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the end where other epochs or minutes are asked for than before."""
        self._start = self._epoch_start = time.monotonic()
        if self._loaded != self._asked:
            over = self._horizon.at(trainer.global_step) >= self._horizon.total
            if over and self._config.epochs > trainer.current_epoch:
                raise TrainingError(
                    f"the run has ended, after {trainer.current_epoch} epochs, and its learning rate has fallen to 0; "
                    "to train further, start another one from its model, with --init and another --output"
                )
            self._end_after(trainer, self._config.epochs)
        self._set_epochs(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_start, self._in_val = time.monotonic(), 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Foretell from the first steps, so that the learning rate is right from early on."""
        self._seen += 1
        if self._seen == 1:
            self._first_step = time.monotonic()
        if self._config.minutes and self._seen == 1 + _FIRST_STEPS:
            seconds = self._steps * (time.monotonic() - self._first_step) / _FIRST_STEPS
            whole = (self._steps - batch_idx - 1) / self._steps
            self._keep_within(trainer, seconds, done=trainer.current_epoch + 1, left=whole * seconds)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Time validation."""
        self._val_start = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Time validation."""
        self._validated = time.monotonic() - self._val_start
        self._in_val += self._validated

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See whether what is left is still possible."""
        if self._config.minutes:
            seconds = time.monotonic() - self._epoch_start - self._in_val
            if self._seen >= self._steps:  # else it was resumed within this epoch
                self._keep_within(trainer, seconds, done=trainer.current_epoch + 1, left=0.0)

    def _keep_within(self, trainer: L.Trainer, epoch: float, *, done: int, left: float) -> None:
        """Give up the epochs for which there will be no time; take them back where steps have become faster.

        Args:
            trainer: of the run.
            epoch: seconds of one.
            done: epochs that are over, or have begun.
            left: seconds of the one that has begun.
        """
        val = self._validated or _VAL_STEP * self._val_share * epoch
        time_left = 60 * self._config.minutes - self._elapsed() - left - 2 * val  # the last epoch's, and the bundle's
        per_epoch = epoch + val / self._config.val_every
        possible = done + max(0, int(time_left / per_epoch))
        possible = trainer.strategy.broadcast(possible)
        if time_left < 0 and done == 1 and left:
            raise TrainingError(
                f"an epoch takes about {epoch / 60:.1f} minutes here, and trainer.minutes is {self._config.minutes:g}; "
                f"give at least {(epoch + 2 * val) / 60 + 0.1:.1f}, a smaller data.size or data.crop, or fewer "
                "steps per epoch by data.steps"
            )
        planned, possible = trainer.max_epochs or 0, min(possible, self._config.epochs)
        over = self._horizon.at(trainer.global_step) >= self._horizon.total
        if possible < planned or (possible > _WORTH_MORE * planned and not over):
            if is_first_process():
                slower = f"{planned} epochs would take longer than {self._config.minutes:g} minutes"
                say(f"{slower if possible < planned else 'steps are faster now'}: it will be {possible} epochs")
            self._end_after(trainer, possible)
            self._set_epochs(trainer)

    def _end_after(self, trainer: L.Trainer, epochs: int) -> None:
        done = -(-trainer.global_step // self._steps)
        self._horizon.move_end(trainer.global_step, max(done, epochs) * self._steps)

    def _set_epochs(self, trainer: L.Trainer) -> None:
        trainer.fit_loop.max_epochs = self._horizon.end // self._steps

    def _elapsed(self) -> float:
        return self._before + (time.monotonic() - self._start if self._start else 0.0)


def epochs_to_finish(folder: Path) -> int:
    """How many epochs a run has if it is to end as soon as may be; 0 if no whole one is done.

    Those that are done, and one in which the learning rate falls to 0, unless it has fallen by then.
    """
    done, over = _kept(folder)
    return done + (not over) if done else 0


def is_over(folder: Path) -> bool:
    """Whether a run's last checkpoint is of the end of its plan, so that it cannot be trained further."""
    return _kept(folder)[1]


def _kept(folder: Path) -> tuple[int, bool]:
    """Whole epochs in a run's last checkpoint, and whether the plan ends there."""
    file = folder / "checkpoints" / "last.ckpt"
    if not file.exists():
        return 0, False
    checkpoint = read_checkpoint(file)
    horizon = Horizon(0)
    horizon.restore(checkpoint["callbacks"][Deadline.__qualname__]["horizon"])
    done = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    return done, checkpoint["global_step"] >= horizon.end
