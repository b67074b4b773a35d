"""Budgets in milliseconds: what an image takes through a runtime, and the most accurate model that fits.

`fit` is the command; it reads downwards: `candidates` lists what there is to choose among, `measure` times and scores
it, `choose` finds the best and proves it. `dense_layers` keeps grouped convolutions dense where that is faster, and
`kit` measures on machines without litheseg.
"""

from __future__ import annotations

__all__: list[str] = []
