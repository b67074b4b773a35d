"""What was measured, made readable: figures, the model card, and one self-contained HTML page.

`run_report` is what commands call; it loads models and pictures. The rest knows numbers, arrays and headers only:
`plots` draws figures, `card` says what a model is, `html` puts it all into one file, `terminal` shows tables.
"""

from __future__ import annotations

__all__: list[str] = []
