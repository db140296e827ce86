"""`python -m launch.embed` runs `fsa.commands.embed`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fsa.commands.embed", run_name="__main__", alter_sys=True)
