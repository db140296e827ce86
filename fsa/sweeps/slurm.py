"""Runs as a SLURM array, by submitit (`pip install submitit`)."""

import json
import pathlib
from collections.abc import Iterator, Sequence

import submitit
from submitit.core.utils import FailedSubmissionError

from fsa.errors import InputError
from fsa.sweeps.jobs import Job, Worker, queued_in_slurm, until_left

_LOOK_SECONDS = 10.0
# A run may take many times a job's limit.
_MOST_TIMEOUTS = 1000


class Resumable:
    """Does a job; one that meets its time limit or is preempted is queued again."""

    def __call__(self, job: Job):
        """Does what is left of it."""
        self._worker = Worker()
        self._worker(job)

    def checkpoint(self, job: Job) -> submitit.helpers.DelayedSubmission:
        """What submitit queues in place of a job that has to go."""
        self._worker.stop()
        self._worker.wait()
        return submitit.helpers.DelayedSubmission(Resumable(), job)


def slurm_array(
    jobs: Sequence[Job], at_once: int, folder: pathlib.Path, options: dict[str, str]
) -> Iterator[Job]:
    """Does jobs in a SLURM array; yields each when it has left the queue.

    Those that an earlier call queued, and that are still there, are not queued again.

    Args:
      jobs: to do.
      at_once: how many at a time.
      folder: for submitit's files and the numbers of jobs, seen by all machines.
      options: of `submitit.SlurmExecutor`, e.g. `{"time": "60", "partition": "gpu"}`.

    Raises:
      InputError: for options that SLURM or submitit refuses, and without SLURM.
    """
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_MOST_TIMEOUTS)
        executor.update_parameters(
            array_parallelism=at_once,
            **{
                name: int(value) if value.isdigit() else value
                for name, value in options.items()
            },
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--cluster=slurm, --slurm={options}: {error}") from error
    path = folder / "numbers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    queue = queued_in_slurm()
    if queue is None:
        raise InputError("--cluster=slurm: squeue does not answer; is SLURM up?")
    new = [job for job in jobs if known.get(job.name) not in queue]
    if new:
        try:
            submitted = executor.map_array(Resumable(), new)
        except FailedSubmissionError as error:
            raise InputError(f"--cluster=slurm: sbatch refused it: {error}") from error
        known |= {j.name: s.job_id for j, s in zip(new, submitted, strict=True)}
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(known, indent=1) + "\n")
        draft.replace(path)
    yield from until_left({job: known[job.name] for job in jobs}, _LOOK_SECONDS)
