"""Masks and what is done with them: class lists, files, pictures, resizing, and labels at full size from logits."""

from __future__ import annotations

__all__: list[str] = []
