"""`python -m launch.compile` runs `fsa.commands.compile`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fsa.commands.compile", run_name="__main__", alter_sys=True)
