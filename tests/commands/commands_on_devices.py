"""Runs commands on the devices of this process, or of several processes.

`python commands_on_devices.py FOLDER LINES [COORDINATOR PROCESSES ID]`, where the JSON
file LINES holds the command lines. It is a program of its own because JAX fixes devices
and processes when it starts. It prints what each command printed, as JSON.
"""

import json
import pathlib
import sys

import conftest
import jax

from fsa.parallel import processes

if __name__ == "__main__":
    if sys.argv[3:]:
        coordinator, number, own = sys.argv[3:]
        processes.initialize(coordinator, int(number), int(own))
    shown = []
    for line in json.loads(pathlib.Path(sys.argv[2]).read_text()):
        finished = conftest.run_launch(*line, folder=sys.argv[1])
        assert finished.code == 0, finished.err
        shown.append(finished.out)
    print(json.dumps({"shown": shown, "devices": jax.device_count()}))
