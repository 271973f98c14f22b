"""`python -m grader`."""

import os
import sys

from grader.cli import main
from minigrpo.commands import INTERRUPTED

if __name__ == "__main__":
    status = main()
    # at once: the workers of threads that still grade end with us, and results are whole
    if status == INTERRUPTED:
        os._exit(status)
    sys.exit(status)
