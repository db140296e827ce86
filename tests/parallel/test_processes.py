"""Joining processes: which arguments and environments do so."""

import jax
import pytest

from fsa.errors import InputError
from fsa.parallel import processes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2, "process_id": 0}, "`coordinator`"),
        ({"coordinator": "10.0.0.1:1234"}, "`num_processes`"),
        (
            {"coordinator": "10.0.0.1", "num_processes": 2, "process_id": 0},
            "`coordinator`=10.0.0.1",
        ),
        (
            {"coordinator": "10.0.0.1:1234", "num_processes": 2, "process_id": 2},
            "`process_id`=2",
        ),
        (
            {"coordinator": "10.0.0.1:1234", "num_processes": 2, "process_id": -1},
            "`process_id`=-1",
        ),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        processes.initialize(**given)


@pytest.mark.parametrize("missing", [None, "SLURM_PROCID", "SLURM_STEP_NODELIST"])
def test_a_slurm_step_of_several_tasks_is_joined(monkeypatch, missing):
    """A process that merely runs inside an allocation is not, nor is a single task."""
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: joined.append(k))
    monkeypatch.setattr(jax.config, "update", lambda *a: None)
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if missing:
        monkeypatch.delenv(missing)
    processes.initialize(heartbeat_seconds=7)
    assert [k["heartbeat_timeout_seconds"] for k in joined] == ([] if missing else [7])
    monkeypatch.setenv("SLURM_NTASKS", "1")
    joined.clear()
    processes.initialize()
    assert not joined


def test_a_single_process_is_the_first():
    with processes.first_goes_ahead():
        assert processes.on_first(lambda: [1, "a"]) == [1, "a"]
    assert processes.is_first()
