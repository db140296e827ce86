"""`python -m launch.prepare` runs `fsa.commands.prepare`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fsa.commands.prepare", run_name="__main__", alter_sys=True)
