"""Whether a confidence can be believed, and what it is worth for finding errors.

Two questions about the probability that a network gives its labels, answered over pixels:

* Calibration: of the pixels with a confidence of 0.9, are 90 % right? Expected calibration error, ECE (Naeini et al.,
  AAAI 2015; Guo et al., ICML 2017, section 2): the mean difference of the two over 15 bins, weighted by pixels.
* Ranking: are the errors among the least confident pixels? The risk-coverage curve (Geifman and El-Yaniv, NeurIPS
  2017) is the share of errors among the most confident pixels; AURC is its mean over all coverages, to be compared with
  that of a perfect ranking, `best_aurc`, and that of no ranking, which is the error itself.

`Confidence` holds counts, so those of images add up, in any order. Ranks are kept in 1024 steps of
log2(1 - confidence), fine where networks are sure; pixels of one step count as in random order.

Usage:
    >>> found = Confidence.of(confidence, right)  # of pixels: float in [0, 1], bool
    >>> found.ece, found.aurc, found.caught(0.1)
    (0.031, 0.012, 0.58)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import digamma

from litheseg.errors import LithesegError

__all__ = ["BINS", "Confidence"]

BINS = 15
"""Of equal width, in which confidence and accuracy are compared."""
_RANKS = 1024
_OCTAVES = 24.0  # below 2^-24 float32 has no differences from 1


@dataclass(frozen=True)
class Confidence:
    """Counts of pixels by their confidence.

    Attributes:
        pixels: int64 [15], in each bin of confidence.
        sure: float64 [15], sum of their confidence.
        right: int64 [15], how many of them have the right label.
        ranked: int64 [2, 1024], pixels and errors, the most confident first.
    """

    pixels: np.ndarray
    sure: np.ndarray
    right: np.ndarray
    ranked: np.ndarray

    @classmethod
    def none(cls) -> Confidence:
        """Of no pixels, to add to."""
        return cls.of(np.empty(0), np.empty(0, bool))

    @classmethod
    def of(cls, confidence: np.ndarray, right: np.ndarray) -> Confidence:
        """Count pixels.

        Args:
            confidence: floating point in [0, 1], any shape.
            right: bool, the same shape.

        Raises:
            LithesegError: shapes that differ, or a confidence outside [0, 1].
        """
        if confidence.shape != right.shape:
            raise LithesegError(f"confidence of shape {confidence.shape}, {right.shape} judged; give one for each")
        sure, correct = confidence.ravel().astype(np.float64), right.ravel().astype(bool)
        if sure.size and not (sure.min() >= 0 and sure.max() <= 1):
            raise LithesegError(f"confidence from {sure.min()} to {sure.max()}; give probabilities, in [0, 1]")
        bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
        with np.errstate(divide="ignore"):
            octaves = np.minimum(-np.log2(1 - sure), _OCTAVES)
        ranks = _RANKS - 1 - np.minimum((octaves * (_RANKS / _OCTAVES)).astype(np.int64), _RANKS - 1)
        return cls(
            np.bincount(bins, minlength=BINS),
            np.bincount(bins, sure, BINS),
            np.bincount(bins[correct], minlength=BINS),
            np.stack([np.bincount(ranks, minlength=_RANKS), np.bincount(ranks[~correct], minlength=_RANKS)]),
        )

    def __add__(self, other: Confidence) -> Confidence:
        return Confidence(
            self.pixels + other.pixels, self.sure + other.sure, self.right + other.right, self.ranked + other.ranked
        )

    @property
    def total(self) -> int:
        """All pixels."""
        return int(self.pixels.sum())

    @property
    def error(self) -> float:
        """Share of the pixels that are wrong; NaN of none."""
        return float(1 - self.right.sum() / self.total) if self.total else float("nan")

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]; NaN of no pixels."""
        return float(np.abs(self.sure - self.right).sum() / self.total) if self.total else float("nan")

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus share of right pixels: above 0 it promises too much, below it is too modest."""
        return float((self.sure.sum() - self.right.sum()) / self.total) if self.total else float("nan")

    @property
    def reliability(self) -> list[tuple[float, float, float]]:
        """Mean confidence, share that is right, and share of all pixels, of each bin that has any."""
        bins = zip(self.sure, self.right, self.pixels, strict=True)
        return [(float(s / n), float(r / n), float(n / self.total)) for s, r, n in bins if n]

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve: mean error among the most confident pixels, over all coverages."""
        if not self.total:
            return float("nan")
        return float(_area(*self.ranked).sum() / self.total)

    @property
    def best_aurc(self) -> float:
        """That of a perfect ranking, which has all errors last."""
        if not self.total:
            return float("nan")
        right, wrong = int(self.right.sum()), self.total - int(self.right.sum())
        return float(_area(np.array([right, wrong]), np.array([0, wrong])).sum() / self.total)

    def risk(self, coverage: float) -> float:
        """Error among the most confident pixels, this share of all; NaN of none."""
        taken = coverage * self.total
        return self._errors(taken) / taken if taken else float("nan")

    def caught(self, share: float) -> float:
        """Share of all errors that lie among the least confident pixels, of which there are `share` of all.

        NaN where nothing is wrong; a map that knows nothing catches `share` of them.
        """
        wrong = float(self.ranked[1].sum())
        return 1 - self._errors((1 - share) * self.total) / wrong if wrong else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """What it comes to, for JSON."""
        values = {name: getattr(self, name) for name in ("error", "ece", "overconfidence", "aurc", "best_aurc")}
        values["caught_10"] = self.caught(0.1)
        return {name: None if value != value else round(value, 6) for name, value in values.items()} | {
            "pixels": self.total,
            "reliability": [[round(part, 6) for part in entry] for entry in self.reliability],
            "risk": [[cover / 20, round(self.risk(cover / 20), 6)] for cover in range(1, 21)] if self.total else [],
        }

    def _errors(self, taken: float) -> float:
        """Errors among so many pixels, the most confident ones."""
        pixels, errors = (np.concatenate([[0], counts.cumsum()]) for counts in self.ranked)
        return float(np.interp(taken, pixels, errors))


def _area(pixels: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Per step, the sum over its pixels of the error among all until then, its own in random order.

    The j-th of the m pixels of a step, e of them wrong, has (E + e j / m) / (N + j) behind N pixels with E errors;
    summed over j that is e + (E - e N / m) (H(N + m) - H(N)) with the harmonic numbers H.
    """
    has = pixels > 0
    pixels, errors = pixels[has].astype(np.float64), errors[has].astype(np.float64)
    first, missed = pixels.cumsum() - pixels, errors.cumsum() - errors
    harmonic = digamma(first + pixels + 1) - digamma(first + 1)
    return np.asarray(errors + (missed - errors * first / pixels) * harmonic)
