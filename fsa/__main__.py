"""`python -m fsa COMMAND ...` does what the console script `fsa COMMAND ...` does."""

import sys

from fsa.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
