"""Several processes as one run: how they find each other, and who does what once."""

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
from orbax.checkpoint import multihost

from fsa.errors import InputError

# What srun tells each of its tasks; the script of sbatch itself lacks some.
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
    """Joins the other processes of the run, before any array is made.

    Without arguments they are those of the SLURM step or TPU pod that started this
    process; elsewhere the process stays alone.

    Args:
      coordinator: "host:port" of process 0, free there and the same everywhere.
      num_processes: of the run.
      process_id: of this one, from 0.
      heartbeat_seconds: a process that is silent for so long is dead, and the others
        end.
      connect_seconds: to wait for the others.

    Raises:
      InputError: for arguments that do not belong together, and when the others do not
        come.
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
    # CPUs sum over processes by gloo. The preemption service would take SIGTERM, which
    # is `fsa.parallel.preemption`'s.
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
            "of them at once, with --coordinator, --num_processes and --process_id"
        ) from error


def _check(coordinator, num_processes, process_id):
    if None in (coordinator, num_processes, process_id):
        raise InputError(
            "--coordinator, --num_processes and --process_id go together; give all "
            "three, or none on SLURM, on a TPU pod and for a single process"
        )
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(
            f"--coordinator={coordinator}: write host:port of process 0, e.g. "
            "10.0.0.1:1234"
        )
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id}: is in [0, {num_processes - 1}], below "
            f"--num_processes={num_processes}"
        )


def _started_by_a_cluster() -> bool:
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and os.environ.keys() >= {*_SLURM}:
        return True
    # JAX asks for TPUs where the machine has some and nothing else was asked for.
    return "tpu" in (jax.config.jax_platforms or "").split(",")


def ask(flag: bool) -> Callable[[], bool]:
    """Starts asking whether a flag holds in any process; what it gives has the answer.

    To be called by all. It is a collective of one flag a device, which nobody waits for
    before the answer is called for.
    """
    if jax.process_count() == 1:
        return lambda: flag
    by_device, count = _counter()
    own = np.full(jax.local_device_count(), flag)
    found = count(jax.make_array_from_process_local_data(by_device, own))
    return lambda: bool(found.addressable_data(0))


@functools.cache
def _counter():
    # Axes are explicit by default, and then every operation must say where it is.
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=auto)
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_device = NamedSharding(mesh, PartitionSpec("all"))
    return by_device, jax.jit(jnp.any, out_shardings=everywhere)


def is_first() -> bool:
    """Whether this process writes the files of a run and says how it goes."""
    return jax.process_index() == 0


def on_first(call: Callable[[], Any]) -> Any:
    """What `call()` gives in process 0, in all processes; they wait for it.

    Args:
      call: gives JSON.

    Raises:
      InputError: in all processes, if the call raises one.
    """
    if jax.process_count() == 1:
        return call()
    message = b""
    if is_first():
        try:
            message = json.dumps({"result": call()}).encode()
        except InputError as error:
            message = json.dumps({"refused": str(error)}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.frombuffer(message.ljust(size, b" "), np.uint8)
    answer = json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
    if "refused" in answer:
        raise InputError(answer["refused"])
    return answer["result"]


@contextlib.contextmanager
def first_goes_ahead():
    """Process 0 is done with what is inside before the others begin.

    For what writes files that are there for the others to read. They wait for hours if
    need be, at a barrier that is no collective of devices.
    """
    alone = jax.process_count() == 1

    def wait():
        everybody = set(range(jax.process_count()))
        name = "fsa first goes ahead"
        multihost.sync_global_processes(name, timeout=_DAY, processes=everybody)

    if not alone and not is_first():
        wait()
    try:
        yield
    finally:
        if not alone and is_first():
            wait()
