"""Training on a real disk that is full, and goes on when it has room."""

import contextlib
import os
import shutil
import subprocess

import pytest
from etils import epath

from fsa.training.checkpoint import Checkpoints


@contextlib.contextmanager
def small_disk(place, size):
    """A tmpfs of a size; `grow(size)` gives it room."""

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True)
        return done.returncode == 0

    place.mkdir()
    if os.getuid() or not shutil.which("mount") or not mount(f"size={size}"):
        pytest.skip("no right to mount a small disk")
    try:
        yield lambda size: mount(f"remount,size={size}")
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
def test_what_was_saved_is_kept(launch, tiny_fields, tmp_path):
    fields = {**tiny_fields, "model.hidden": 64, "train.steps": 40}
    line = (
        *("train", "--config=experiments/synthetic/two_types.py:np-btl"),
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={tmp_path / 'disk' / 'run'}",
    )
    with small_disk(tmp_path / "disk", "3m") as grow:
        finished = launch(*line)
        assert finished.code == 2 and "Traceback" not in finished.err
        *_, last = finished.err.splitlines()
        assert last.startswith("error: ") and "No space left on device" in last
        folder = epath.Path(tmp_path / "disk" / "run" / "checkpoints")
        checkpoints = Checkpoints(folder, read_only=True)
        step = checkpoints.latest_step
        checkpoints.close()
        assert 0 < step < 40 and f"step {step} is kept" in last
        grow("30m")
        finished = launch(*line)
        assert finished.code == 0, finished.err
        assert f"Resuming from step {step}" in finished.err
