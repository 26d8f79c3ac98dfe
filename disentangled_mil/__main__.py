"""``python -m disentangled_mil``."""

import signal
import sys

from .cli import main

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `_command` changed it while torch was loaded
    sys.exit(main())
