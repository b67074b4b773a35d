"""Latency budgets in milliseconds: find the most accurate model within one by timing.

`fit` is the command: `candidates` lists the choices, `measure` times and scores them, `choose` finds and verifies the
best. `dense_layers` keeps grouped convolutions dense where that is faster, and
`kit` measures on machines without litheseg.
"""

from __future__ import annotations

__all__: list[str] = []
