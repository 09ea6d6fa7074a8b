"""`python -m softdimo`."""

import sys

from softdimo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
