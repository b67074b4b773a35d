"""Budgets in milliseconds: what an image takes through a runtime, and the most accurate model that fits.

`candidates` lists what there is to choose among, `race` chooses, `fit` does it for a model file and proves it; `plan`
keeps grouped convolutions dense where that is faster, and `target` measures on machines without litheseg.
"""

from __future__ import annotations

__all__: list[str] = []
