"""`python -m fsa COMMAND ...` does what the console script `fsa COMMAND ...` does."""

import sys

from fsa import exits

if __name__ == "__main__":
    # Before the imports that follow, so that Ctrl-C is handled while they take place.
    exits.watch_ctrl_c()
    from fsa.commands.main import main

    sys.exit(main())
