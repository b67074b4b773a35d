"""`python -m litheseg` is `litheseg`."""

from __future__ import annotations

import sys

from litheseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
