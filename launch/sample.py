"""`python -m launch.sample` runs `fsa.commands.sample`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fsa.commands.sample", run_name="__main__", alter_sys=True)
