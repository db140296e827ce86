"""TensorBoard events, written without TensorFlow and without a thread.

tensorboardX's `SummaryWriter` hands events to a thread, which dies of a full disk; the
training would then wait for ever for room in its queue. So its parts are used here.
"""

import os
import pathlib
import time

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

# Seconds after which events are on the disk, where TensorBoard finds them.
_FLUSH_SECONDS = 30.0


class Board:
    """Writes scalars into a new file of events."""

    def __init__(self, folder: pathlib.Path, *, resume_step: int = 0):
        """Opens the file.

        Args:
          folder: created if missing.
          resume_step: TensorBoard ignores earlier events of later steps.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # The step makes the name unique; the time in it is in whole seconds only.
        self._file = EventsWriter(os.fspath(folder / "events"), f".{resume_step}")
        self._flushed = 0.0
        if resume_step:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(step=resume_step + 1, session_log=start))

    def _add(self, event: Event):
        event.wall_time = time.time()
        self._file.write_event(event)

    def write(self, step: int, name: str, value: float):
        """Writes a scalar of a step."""
        self._add(Event(step=step, summary=summary.scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Writes to the disk what is still in memory."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self):
        """Flushes and closes the file."""
        self._file.close()
