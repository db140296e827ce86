"""Programs that compile quickly, and eight virtual devices in a separate process."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """Compiles with little optimization: programs are small and run once."""
    disabled = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", disabled)


def run_on_eight_devices(file):
    """Runs a file as a script and returns the JSON that it prints.

    The number of devices is a flag that XLA reads once, and other tests want one.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    own = {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        # Collectives are placed before those, and compiling takes less time.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
    }
    finished = subprocess.run(
        [sys.executable, file],
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture(scope="module")
def shown(request):
    """The JSON that the test's own file prints as a script on eight devices."""
    return run_on_eight_devices(request.path)
