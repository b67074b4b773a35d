"""What a data set is and where its images and masks come from; which of them are labelled, and which are scored.

`base` says what every source can do; `folder`, `public` and `streets` are the sources, `unlabelled` and `clips` the
images without masks. `splits`, `hold_out` and `redivided` divide the images, by what `likeness` sees of them.
"""

from __future__ import annotations

__all__: list[str] = []
