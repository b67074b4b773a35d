"""What fits remember, so that the next one is quick: timings of this machine, scores, exports.

One folder per model, named by a digest of its weights. Timings are kept per host, that is per processor, number of
cores and versions of the runtimes; scores per data set. Everything can be deleted at any time. A file that cannot be
read counts as empty: what it held is measured again.

It knows neither candidates nor data sets: keys are text.

Usage:
    >>> store = Store.of(bundle)
    >>> store.samples["w0.5-180x240-fp32 openvino 2t 360x480"].ms
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from litheseg.data.source import Source
from litheseg.files import atomic_path
from litheseg.machine import host_facts
from litheseg.models.bundle import Bundle, model_digest
from litheseg.runtime.latency import Latency, Scope

__all__ = ["Store", "data_digest", "default_cache", "store_folder"]

_MOST_SAMPLES = 400  # of a candidate; older ones are forgotten


@dataclass
class Store:
    """The memory of one model on one machine.

    Attributes:
        folder: where it lies; made when something is kept.
        host: `litheseg.machine.host_facts` of this machine.
        samples: timings by key.
        scores: accuracy by key: name -> value.
    """

    folder: Path
    host: Mapping[str, Any] = field(default_factory=host_facts)
    samples: dict[str, Latency] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle, cache: Path | None = None, *, fresh: bool = False) -> Store:
        """What is known of a bundle.

        Args:
            bundle: a loaded one.
            cache: the folder of all models; None for `default_cache()`.
            fresh: forget the timings.
        """
        store = cls(store_folder(bundle, cache))
        store.scores = _read(store._scores_file)
        if not fresh:
            store.samples = {
                key: Latency(Scope.END_TO_END, list(map(float, times)))
                for key, times in _read(store._timings_file).items()
            }
        return store

    @property
    def exports(self) -> Path:
        """The folder for exports."""
        return self.folder / "exports"

    @property
    def plan_file(self) -> Path:
        """Where the plan of this machine is kept (`litheseg.budget.plan`)."""
        return self.folder / f"plan-{self._host_digest}.json"

    def save_samples(self) -> None:
        """Write the timings.

        Raises:
            LithesegError: the folder cannot be written to.
        """
        kept = {key: [round(value, 4) for value in found.ms[-_MOST_SAMPLES:]] for key, found in self.samples.items()}
        _write(self._timings_file, {"host": dict(self.host), "entries": kept})

    def save_scores(self) -> None:
        """Write the scores.

        Raises:
            LithesegError: the folder cannot be written to.
        """
        _write(self._scores_file, {"entries": self.scores})

    @property
    def _host_digest(self) -> str:
        lasting = {name: self.host[name] for name in ("cpu", "cores", "machine", "versions")}
        return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def _timings_file(self) -> Path:
        return self.folder / f"timings-{self._host_digest}.json"

    @property
    def _scores_file(self) -> Path:
        return self.folder / "scores.json"


def default_cache() -> Path:
    """``~/.cache/litheseg/budget``, or below ``$XDG_CACHE_HOME``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litheseg" / "budget"


def store_folder(bundle: Bundle, cache: Path | None = None) -> Path:
    """Where what is known of a bundle lies; `cache` as of `Store.of`."""
    return (cache or default_cache()) / model_digest(bundle)[:16]


def data_digest(source: Source, *splits: str) -> str:
    """SHA-256 of which samples the splits hold, and of their files' sizes and times."""
    result = hashlib.sha256(json.dumps([source.name, source.classes.names]).encode())
    for split in splits:
        for sample in source.samples(split):
            facts = [(path.stat().st_size, path.stat().st_mtime_ns) for path in (sample.image, sample.mask) if path]
            result.update(json.dumps([split, sample.id, facts]).encode())
    return result.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
