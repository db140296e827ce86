"""`python -m launch.sweep` runs `fsa.commands.sweep`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fsa.commands.sweep", run_name="__main__", alter_sys=True)
