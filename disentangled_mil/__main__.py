"""``python -m disentangled_mil``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
