"""What tests of budgets share."""

from __future__ import annotations

from litheseg.masks.classes import Classes

CLASSES = Classes(tuple("abcde"), tuple((50 * i, 0, 255 - 50 * i) for i in range(5)))
