"""What fits of one model remember on one machine: timings, scores, exports.

Usage:
    >>> store = Store.of(bundle)
    >>> store.samples["w1-360x480-fp32 torch 1t"] = [14.2, 14.1]
    >>> store.save_samples()
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from litheseg.bundle.targets import PACKAGES
from litheseg.data.sources.base import Source
from litheseg.files import cache_folder, write_text
from litheseg.machine import host_facts
from litheseg.models.bundle import Bundle, model_digest

__all__ = ["Store", "data_digest", "store_folder"]

_MOST_SAMPLES = 400  # of a candidate; older ones are forgotten


@dataclass
class Store:
    """Cache of the fits of one model on one machine: timings, scores, exports; it may be deleted at any time.

    Timings are kept per processor, number of cores and versions of the runtimes; scores per data set. A file that
    cannot be read counts as empty.

    Attributes:
        folder: where it lies; made when something is kept.
        host: `litheseg.machine.host_facts` of this machine.
        samples: timings by the name of candidate and conditions.
        scores: values by name.
    """

    folder: Path
    host: Mapping[str, Any] = field(default_factory=partial(host_facts, PACKAGES))
    samples: dict[str, list[float]] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle, cache: Path | None = None, *, fresh: bool = False) -> Store:
        """The cache of a bundle.

        Args:
            bundle: a loaded one.
            cache: the folder of all models; None for `cache_folder("budget")`.
            fresh: forget the timings.
        """
        store = cls(store_folder(bundle, cache))
        store.scores = _entries(store.folder / "scores.json")
        if not fresh:
            store.samples = {key: list(map(float, ms)) for key, ms in _entries(store._timings_file).items()}
        return store

    @property
    def exports(self) -> Path:
        """The folder for exports."""
        return self.folder / "exports"

    @property
    def plan_file(self) -> Path:
        """Where this machine's plan of dense layers is kept."""
        return self.folder / f"plan-{self._host_digest}.json"

    def save_samples(self) -> None:
        """Write the timings.

        Raises:
            LithesegError: the folder cannot be written to.
        """
        kept = {key: [round(value, 4) for value in ms[-_MOST_SAMPLES:]] for key, ms in self.samples.items()}
        write_text(self._timings_file, json.dumps({"host": dict(self.host), "entries": kept}) + "\n")

    def save_scores(self) -> None:
        """Write the scores.

        Raises:
            LithesegError: the folder cannot be written to.
        """
        write_text(self.folder / "scores.json", json.dumps({"entries": self.scores}) + "\n")

    @property
    def _host_digest(self) -> str:
        lasting = {name: self.host[name] for name in ("cpu", "cores", "machine", "versions")}
        return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def _timings_file(self) -> Path:
        return self.folder / f"timings-{self._host_digest}.json"


def _entries(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return entries if isinstance(entries, dict) else {}


def store_folder(bundle: Bundle, cache: Path | None = None) -> Path:
    """The cache folder of a bundle, named by a digest of its weights; `cache` as for `Store.of`."""
    return (cache or cache_folder("budget")) / model_digest(bundle)[:16]


def data_digest(source: Source, *splits: str) -> str:
    """SHA-256 of the splits' samples and of their files' sizes and times."""
    result = hashlib.sha256(json.dumps([source.name, source.classes.names]).encode())
    for split in splits:
        for sample in source.samples(split):
            facts = [(path.stat().st_size, path.stat().st_mtime_ns) for path in (sample.image, sample.mask) if path]
            result.update(json.dumps([split, sample.id, facts]).encode())
    return result.hexdigest()
