"""`python -m lunaq_runtime` is `lunaq-runtime`."""

from __future__ import annotations

import sys

from lunaq_runtime.main import main

if __name__ == "__main__":
    sys.exit(main())
