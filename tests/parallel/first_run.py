"""Two processes of which the first one does something alone; what each of them sees.

Its flags are those of `fsa train`, without --config; `--way` says what the first does.
"""

import time

from absl import flags

from fsa.commands import command_line
from fsa.errors import InputError
from fsa.parallel import processes

flags.DEFINE_string("workdir", None, "Unused.", required=True)
WAY = flags.DEFINE_string("way", "", "What the first process does.")
SECONDS = flags.DEFINE_float("seconds", 0.0, "How long that takes.")
join_processes = command_line.process_flags()


def first():
    time.sleep(SECONDS.value)
    if WAY.value == "refuses":
        raise InputError("a.csv, row 3: empty user")
    if WAY.value == "has a bug":
        raise KeyError("a bug")
    return {"answer": 42}


def main(argv):
    del argv
    join_processes()
    if WAY.value == "one is late":
        processes.all_succeed(lambda: time.sleep(0 if processes.is_first() else 1))
    if WAY.value == "the second fails":

        def fail():
            if not processes.is_first():
                raise InputError("no room on the second")

        processes.all_succeed(fail)
    with processes.first_goes_ahead():
        if WAY.value == "fails ahead" and processes.is_first():
            raise InputError("no room on the first")
    print("found", processes.on_first(first)["answer"])


if __name__ == "__main__":
    command_line.run(main)
