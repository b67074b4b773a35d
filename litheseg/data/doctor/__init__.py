"""What is wrong with a data set, and what helps.

`diagnosis` is what users call. It reads every sample once (`exam`), and turns what it measured into findings (`checks`,
`learnable`, `alike`), whose codes and remedies are listed in `findings`.
"""

from __future__ import annotations

__all__: list[str] = []
