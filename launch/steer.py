"""`python -m launch.steer` runs `fsa.commands.steer`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fsa.commands.steer", run_name="__main__", alter_sys=True)
