"""Runs of a sweep as jobs: processes on this machine, or tasks of a SLURM array.

A job is done once. While it runs it holds a lock that its processes inherit, so that a
second sweep waits for processes that a killed sweep left behind; when it is done it
leaves a mark. Training resumes, so a job that was stopped loses only what it had not
saved.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

_RETRY_SECONDS = 0.5


class Job(NamedTuple):
    """One run.

    Attributes:
      name: the name of the run.
      folder: its run directory.
      commands: the programs to run one after another, each with its arguments; the job
        is done when all of them have succeeded.
      cache: folder of compiled programs, unless JAX_COMPILATION_CACHE_DIR is set.
    """

    name: str
    folder: pathlib.Path
    commands: tuple[tuple[str, ...], ...]
    cache: pathlib.Path

    @property
    def log(self) -> pathlib.Path:
        """The file that its processes print to."""
        return self.folder / "log.txt"

    @property
    def _mark(self) -> pathlib.Path:
        return self.folder / "done"

    def is_done(self) -> bool:
        """Whether all of its commands have succeeded."""
        return self._mark.exists()

    def finish(self):
        """Marks the job as done."""
        self._mark.touch()

    def last_log_line(self) -> str:
        """Returns the last line of its log."""
        # Progress bars return to the start of their line.
        lines = re.split(r"[\r\n]+", self.log.read_text() if self.log.exists() else "")
        return next((line for line in reversed(lines) if line.strip()), "empty log")


class Worker:
    """Runs jobs; may be called from several threads at a time."""

    def __init__(self):
        """Makes a worker that runs nothing yet."""
        self._stopped = threading.Event()
        self._running: set[subprocess.Popen] = set()

    def __call__(self, job: Job):
        """Runs a job unless it is done; `job.is_done()` tells whether it succeeded."""
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / "lock").open("w") as lock, job.log.open("a") as log:
            if not self._take(lock, log) or job.is_done():
                return
            if all(self._run(command, job, lock, log) for command in job.commands):
                job.finish()

    def stop(self):
        """Ends running processes as preemption does; returns at once."""
        self._stopped.set()
        for process in [*self._running]:
            process.terminate()

    def wait(self):
        """Waits until no process runs; may interrupt the thread that started one."""
        for process in [*self._running]:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    def _take(self, lock, log) -> bool:
        """Waits for the lock; returns False if stopped before."""
        waits = False
        while not self._stopped.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if not waits:
                    log.write("Waiting for processes that an earlier sweep left.\n")
                    log.flush()
                waits = True
                self._stopped.wait(_RETRY_SECONDS)
        return False

    def _run(self, command: tuple[str, ...], job: Job, lock, log) -> bool:
        """Runs one command of a job; returns whether it succeeded."""
        if self._stopped.is_set():
            return False
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={"JAX_COMPILATION_CACHE_DIR": str(job.cache), **os.environ},
            # The process holds the lock as well, and outlives a sweep that is killed.
            pass_fds=[lock.fileno()],
            # Ctrl-C goes to the sweep alone, which then stops its processes.
            process_group=0,
        )
        self._running.add(process)
        code = process.wait()
        self._running.remove(process)
        return code == 0


def run_locally(jobs: Iterable[Job], at_once: int) -> Iterator[Job]:
    """Runs jobs in processes of this machine; yields each when it ends.

    Args:
      jobs: the jobs to run.
      at_once: how many to run at a time.
    """
    worker = Worker()
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(worker, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            # Processes run here only after a failure or Ctrl-C; they save first.
            pool.shutdown(wait=False, cancel_futures=True)
            worker.stop()
            pool.shutdown()


def queued_in_slurm() -> set[str] | None:
    """Returns numbers of this user's jobs in the queue; None if squeue fails."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    found = subprocess.run(command, capture_output=True, text=True)
    return None if found.returncode else set(found.stdout.split())


def until_left(numbers: dict[Job, str], seconds: float) -> Iterator[Job]:
    """Yields jobs as they leave SLURM's queue, whether they succeeded or not.

    Args:
      numbers: the number of each job in SLURM.
      seconds: time between two looks at the queue.
    """
    waiting = dict(numbers)
    while waiting:
        queue = queued_in_slurm()
        left = [
            job for job in waiting if queue is not None and waiting[job] not in queue
        ]
        for job in left:
            del waiting[job]
            yield job
        if waiting:
            time.sleep(seconds)
