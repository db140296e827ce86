"""A run of several processes: joining them, and what only one of them does."""

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fsa.errors import InputError

# Variables that srun sets for each task; the script of sbatch itself lacks some.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
_DAY = 24 * 3600


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 100,
    connect_seconds: int = 300,
) -> None:
    """Joins the other processes of the run; must be called before any array is made.

    Without arguments, the processes of the SLURM step or TPU pod that started this one
    are joined; elsewhere this process runs alone.

    Args:
      coordinator: "host:port" of process 0, the same in all processes; the port must be
        free there.
      num_processes: number of processes of the run.
      process_id: number of this process, from 0.
      heartbeat_seconds: a process that is silent for this long counts as dead, and the
        others end.
      connect_seconds: how long to wait for the other processes.

    Raises:
      InputError: if the arguments contradict each other, or if the other processes do
        not connect.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if any(value is not None for value in given.values()):
        _check(**given)
    elif not _started_by_a_cluster():
        return
    # On CPUs, collectives over processes need gloo. JAX's own preemption service would
    # handle SIGTERM, which `fsa.parallel.preemption` does here.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=connect_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        (reason, *_) = str(error).splitlines()
        raise InputError(
            f"the processes of this run did not find each other ({reason}); start all "
            "of them at once, with `coordinator`, `num_processes` and `process_id`"
        ) from error


def _check(coordinator, num_processes, process_id):
    if None in (coordinator, num_processes, process_id):
        raise InputError(
            "`coordinator`, `num_processes` and `process_id` go together; give all "
            "three, or none on SLURM, on a TPU pod and for a single process"
        )
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(
            f"`coordinator`={coordinator}: write host:port of process 0, e.g. "
            "10.0.0.1:1234"
        )
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"`process_id`={process_id}: must be in [0, {num_processes - 1}], below "
            f"`num_processes`={num_processes}"
        )


def _started_by_a_cluster() -> bool:
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and os.environ.keys() >= {*_SLURM}:
        return True
    # JAX sets this platform on machines with TPUs unless another one is configured.
    return "tpu" in (jax.config.jax_platforms or "").split(",")


def ask_largest(number: int) -> Callable[[], int]:
    """Starts to ask for the largest of the processes' numbers; the result answers.

    All processes must call this. It starts a collective of one number per device; only
    the call of the returned function waits for it.
    """
    if jax.process_count() == 1:
        return lambda: number
    by_device, largest = _largest()
    own = np.full(jax.local_device_count(), number, np.int32)
    found = largest(jax.make_array_from_process_local_data(by_device, own))
    return lambda: int(found.addressable_data(0))


@functools.cache
def _largest():
    # With explicit axes, the default, every operation must state its sharding.
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=auto)
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_device = NamedSharding(mesh, PartitionSpec("all"))
    return by_device, jax.jit(jnp.max, out_shardings=everywhere)


def is_first() -> bool:
    """Whether this process writes the files of a run and reports its progress."""
    return jax.process_index() == 0


def on_first(call: Callable[[], Any]) -> Any:
    """Returns, in all processes, the result of `call()` in process 0.

    It may take hours: the others wait at a barrier that is not a collective of devices,
    which would end them after half a minute.

    Args:
      call: run in process 0 only; its result must be JSON.

    Raises:
      InputError: in all processes, if the call raises one.
      RuntimeError: in the others, if the call raises any other exception.
    """
    if jax.process_count() == 1:
        return call()
    result, error = None, None
    if is_first():
        try:
            result = json.loads(json.dumps(call()))
        except Exception as raised:
            error = raised
    return _agree(result, error)[0]


def all_succeed(call: Callable[[], None]) -> None:
    """Runs `call()` in all processes; raises in all of them if it fails in any.

    Otherwise those that succeed would wait for the one that failed. They wait for each
    other as in `on_first`, and raise what it does.
    """
    if jax.process_count() == 1:
        call()
        return
    error = None
    try:
        call()
    except Exception as raised:
        error = raised
    _agree(None, error)


@contextlib.contextmanager
def first_goes_ahead():
    """Runs the body in process 0 first, then in all the other processes.

    Use it for code that writes files in process 0, which the others then read. At the
    end, all processes wait for each other as in `on_first`; if the body fails in one of
    them, all raise the exceptions that `on_first` names.
    """
    if jax.process_count() == 1:
        yield
        return
    if not is_first():
        _wait("fsa first goes ahead")
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    if is_first():
        _wait("fsa first goes ahead")
    _agree(None, error)


def _wait(name: str) -> None:
    """Waits for all processes, at a barrier that is not a collective of devices."""
    # Imported here, since it takes a fifth of a second and one process never waits.
    from orbax.checkpoint import multihost

    everybody = set(range(jax.process_count()))
    multihost.sync_global_processes(name, timeout=_DAY, processes=everybody)


def _agree(result: Any, error: Exception | None) -> list[Any]:
    """Waits for all processes; returns their results, or raises if any has an error.

    Args:
      result: JSON of this process.
      error: what went wrong in this process; it is raised here.
    """
    _wait("fsa agree")
    kind = "refused" if isinstance(error, InputError) else "failed"
    text = str(error) if kind == "refused" else f"{type(error).__name__}: {error}"
    own = {"result": result} if error is None else {kind: text}
    answers = _gather(own)
    if error is not None:
        raise error
    for process, answer in enumerate(answers):
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "failed" in answer:
            raise RuntimeError(f"process {process} failed: {answer['failed']}")
    return [answer["result"] for answer in answers]


def _gather(own: Any) -> list[Any]:
    """Returns JSON of all processes; all have arrived, so that nobody waits long."""
    message = json.dumps(own).encode()
    size = ask_largest(len(message))()
    padded = np.frombuffer(message.ljust(size), np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row.tobytes()) for row in rows]
