"""Reports of measurements: figures, the model card, and one self-contained HTML page.

Commands call `run_report`, which loads models and images. The rest takes numbers, arrays and headers only: `plots`
draws figures, `card` describes a model, `html` puts it all into one file, `terminal` shows tables.
"""

from __future__ import annotations

__all__: list[str] = []
