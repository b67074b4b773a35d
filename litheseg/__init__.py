"""litheseg: one segmentation network, every budget.

The names below are all that most programs need; they are imported when first used, so that a program that only predicts
never loads what only training needs.

Usage:
    >>> import litheseg
    >>> run = litheseg.train("slimseg", "runs/camvid", data="data/camvid", size=(360, 480), minutes=60)
    >>> litheseg.Predictor(run.bundle, width=0.5)("street.jpg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from litheseg.lazy import lazy_names

if TYPE_CHECKING:
    from litheseg.building.session import build, train
    from litheseg.data import open_source
    from litheseg.data.doctor.diagnosis import diagnose, diagnose_path
    from litheseg.errors import LithesegError
    from litheseg.evaluation import evaluate
    from litheseg.evaluation.bundle import evaluate_bundle
    from litheseg.models import build_model
    from litheseg.models.bundle import load_bundle, save_bundle
    from litheseg.nn import extract, recalibrate, set_width, slim
    from litheseg.report.run_report import report_run, write_report
    from litheseg.runtime import Predictor, predict_files, profile
    from litheseg.training import load_recipe

__all__ = [
    "LithesegError",
    "Predictor",
    "build",
    "build_model",
    "diagnose",
    "diagnose_path",
    "evaluate",
    "evaluate_bundle",
    "extract",
    "load_bundle",
    "load_recipe",
    "open_source",
    "predict_files",
    "profile",
    "recalibrate",
    "report_run",
    "save_bundle",
    "set_width",
    "slim",
    "train",
    "write_report",
]

__version__ = "0.1.0"

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "building.session": ("build", "train"),
        "data": ("open_source",),
        "data.doctor.diagnosis": ("diagnose", "diagnose_path"),
        "models.bundle": ("load_bundle", "save_bundle"),
        "errors": ("LithesegError",),
        "evaluation": ("evaluate",),
        "evaluation.bundle": ("evaluate_bundle",),
        "models": ("build_model",),
        "nn": ("extract", "recalibrate", "set_width", "slim"),
        "report.run_report": ("report_run", "write_report"),
        "runtime": ("Predictor", "predict_files", "profile"),
        "training": ("load_recipe",),
    },
)
