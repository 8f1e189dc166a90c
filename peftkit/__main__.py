"""`peftkit` and `python -m peftkit`."""

from __future__ import annotations

import sys

from peftkit.cli.entry import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
