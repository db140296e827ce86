"""Runs the jobs of a sweep as a SLURM array, with submitit."""

import json
import pathlib
from collections.abc import Iterator, Sequence

import submitit
from submitit.core.utils import FailedSubmissionError

from fsa.errors import InputError
from fsa.sweeps.jobs import Job, Worker, queued_in_slurm, until_left

_LOOK_SECONDS = 10.0
# A run may take many times the time limit of a job, which is queued again.
_MOST_TIMEOUTS = 1000


class Resumable:
    """Runs a job; submitit queues it again after its time limit or preemption."""

    def __call__(self, job: Job):
        """Runs what is left of the job."""
        self._worker = Worker()
        self._worker(job)

    def checkpoint(self, job: Job) -> submitit.helpers.DelayedSubmission:
        """Stops the job; returns what submitit queues in its place."""
        self._worker.stop()
        self._worker.wait()
        return submitit.helpers.DelayedSubmission(Resumable(), job)


def slurm_array(
    jobs: Sequence[Job], at_once: int, folder: pathlib.Path, options: dict[str, str]
) -> Iterator[Job]:
    """Runs jobs in a SLURM array; yields each when it has left the queue.

    Jobs of an earlier call that are still in the queue are not queued again.

    Args:
      jobs: the jobs to run.
      at_once: how many to run at a time.
      folder: folder for submitit's files and the jobs' numbers, on a disk that all
        machines share.
      options: options of `submitit.SlurmExecutor`, such as
        `{"time": "60", "partition": "gpu"}`.

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
        raise InputError(f"`slurm`={options}: {error}") from error
    path = folder / "numbers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    queue = queued_in_slurm()
    if queue is None:
        raise InputError("`slurm`: squeue does not answer; check that SLURM runs")
    new = [job for job in jobs if known.get(job.name) not in queue]
    if new:
        try:
            submitted = executor.map_array(Resumable(), new)
        except FailedSubmissionError as error:
            raise InputError(f"`slurm`: sbatch refused it: {error}") from error
        known |= {j.name: s.job_id for j, s in zip(new, submitted, strict=True)}
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(known, indent=1) + "\n")
        draft.replace(path)
    yield from until_left({job: known[job.name] for job in jobs}, _LOOK_SECONDS)
