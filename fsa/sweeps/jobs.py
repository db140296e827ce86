"""Runs as jobs: trained and scored side by side here, or as a SLURM array.

A job is done once. While it works it holds a lock that its processes inherit, so that
whoever starts it again waits for what a killed sweep left running; at the end it leaves
a mark. `launch.train` resumes, so a job that was cut off loses what it had not saved.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

_RETRY_SECONDS = 0.5


class Job(NamedTuple):
    """One run.

    Attributes:
      name: what it is called.
      folder: its run directory.
      flags: of launch.train, but for --workdir.
      cache: where compiled programs are kept, unless JAX_COMPILATION_CACHE_DIR says.
    """

    name: str
    folder: pathlib.Path
    flags: tuple[str, ...]
    cache: pathlib.Path

    @property
    def log(self) -> pathlib.Path:
        """What its processes print."""
        return self.folder / "log.txt"

    @property
    def _mark(self) -> pathlib.Path:
        return self.folder / "done"

    def is_done(self) -> bool:
        """Whether it was trained and scored."""
        return self._mark.exists()

    def finish(self):
        """Says that it was."""
        self._mark.touch()

    def last_words(self) -> str:
        """The last line of its log."""
        # Progress bars return to the start of their line.
        lines = re.split(r"[\r\n]+", self.log.read_text() if self.log.exists() else "")
        return next((line for line in reversed(lines) if line.strip()), "no word of it")


class Worker:
    """Does jobs, in as many threads as there are."""

    def __init__(self):
        """A worker without work."""
        self._stopped = threading.Event()
        self._running: set[subprocess.Popen] = set()

    def __call__(self, job: Job):
        """Does what is left of a job; whether it worked, `job.is_done()` tells."""
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / "lock").open("w") as lock, job.log.open("a") as log:
            if not self._take(lock, log) or job.is_done():
                return
            for module, flags in (("train", job.flags), ("evaluate", ())):
                if self._run(module, job, flags, lock, log):
                    return
            job.finish()

    def stop(self):
        """Ends running processes as preemption does; returns at once."""
        self._stopped.set()
        for process in [*self._running]:
            process.terminate()

    def wait(self):
        """Until no process runs; may interrupt the thread that started one."""
        for process in [*self._running]:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    def _take(self, lock, log) -> bool:
        """Waits for the lock; False if stopped before."""
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

    def _run(self, module: str, job: Job, flags: tuple[str, ...], lock, log) -> int:
        """The exit code of a command line."""
        if self._stopped.is_set():
            return 1
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", f"fsa.commands.{module}"),
                *(f"--workdir={job.folder}", *flags),
            ],
            stdout=log,
            stderr=log,
            env={"JAX_COMPILATION_CACHE_DIR": str(job.cache), **os.environ},
            # So that what is left of a killed sweep is still seen.
            pass_fds=[lock.fileno()],
            # Ctrl-C is for the sweep, which then stops its processes.
            process_group=0,
        )
        self._running.add(process)
        code = process.wait()
        self._running.remove(process)
        return code


def side_by_side(jobs: Iterable[Job], at_once: int) -> Iterator[Job]:
    """Does jobs in processes of this machine; yields each when it ends.

    Args:
      jobs: to do.
      at_once: how many at a time.
    """
    worker = Worker()
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(worker, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            # Nothing is left to stop unless this is a failure, or Ctrl-C.
            pool.shutdown(wait=False, cancel_futures=True)
            worker.stop()


def queued_in_slurm() -> set[str] | None:
    """Numbers of this user's jobs that wait or run; None if SLURM does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    found = subprocess.run(command, capture_output=True, text=True)
    return None if found.returncode else set(found.stdout.split())


def until_left(numbers: dict[Job, str], seconds: float) -> Iterator[Job]:
    """Yields jobs as they leave SLURM's queue, however they end there.

    Args:
      numbers: of the jobs in SLURM.
      seconds: between two looks.
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
