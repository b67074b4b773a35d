"""Runs in MLflow, beside the learning curves of the run's own folder.

They go where ``MLFLOW_TRACKING_URI`` says, or into an SQLite file in the run's folder, since MLflow's folders of files
are no longer supported by itself. The folder notes which run of MLflow is its own, so that a resumed run goes on in it.

Usage:
    >>> logger = MlflowCurves(Path("runs/slimseg"), recipe, keep=False)
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from litheseg.errors import TrainingError
from litheseg.files import write_text
from litheseg.training.recipe import Recipe, recipe_to_dict

__all__ = ["MlflowCurves"]

_DEFAULT_EXPERIMENT = "litheseg"


class MlflowCurves(MLFlowLogger):
    """Lightning's logger for MLflow, with the recipe as parameters; ``val/miou@0.5`` is ``val/miou_0.5`` there.

    Args:
        folder: of the run; its name is that of the run in MLflow. ``MLFLOW_EXPERIMENT_NAME`` names the experiment.
        recipe: what is noted as parameters.
        keep: go on with the run of MLflow that the folder belongs to.

    Raises:
        ModuleNotFoundError: MLflow is not installed.
        TrainingError: the store cannot be used.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, keep: bool) -> None:
        import mlflow  # noqa: F401 - it sets up its logging

        for talker, level in (("mlflow", logging.WARNING), ("lightning.pytorch.loggers.mlflow", logging.ERROR)):
            logging.getLogger(talker).setLevel(level)  # on tables and experiments that they create
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        note = folder / "mlflow.json"
        before = json.loads(note.read_text(encoding="utf-8")) if keep and note.exists() else {}
        known = before.get("run") if before.get("uri") == uri else None
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT_EXPERIMENT
        super().__init__(experiment, folder.name, uri, run_id=known)
        self._begin(note, uri, None if known else recipe)

    @rank_zero_only
    def _begin(self, note: Path, uri: str, recipe: Recipe | None) -> None:
        from mlflow.exceptions import MlflowException

        try:
            run = self.run_id
            if recipe is not None:
                self.log_hyperparams(recipe_to_dict(recipe))
        except MlflowException as error:
            lines = " ".join(str(error).split())[:300]
            raise TrainingError(f"MLflow at {uri} cannot be used ({lines}); set MLFLOW_TRACKING_URI") from error
        write_text(note, json.dumps({"uri": uri, "run": run}) + "\n")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Note numbers of a step; MLflow's names have no @."""
        super().log_metrics({name.replace("@", "_"): value for name, value in metrics.items()}, step)
