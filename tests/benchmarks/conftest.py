"""Scripts in `benchmarks/` import one another, as they do when they are run: their folder is on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
