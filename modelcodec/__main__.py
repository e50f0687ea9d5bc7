"""`python -m modelcodec`: the command `mcodec`."""

import sys

from modelcodec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
