"""What model files and exports say of themselves: read, written and checked, never executed."""

from __future__ import annotations

__all__: list[str] = []
