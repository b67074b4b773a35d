"""Data sets in the formats of other tools: recognised, and written as a folder that training takes.

One module a format; `importing` recognises and converts, `collection` is what a format is read into.
"""

from __future__ import annotations

__all__: list[str] = []
