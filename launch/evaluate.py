"""`python -m launch.evaluate` runs `fsa.commands.evaluate`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fsa.commands.evaluate", run_name="__main__", alter_sys=True)
