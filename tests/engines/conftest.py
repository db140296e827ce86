"""Runs programs in an environment of its own, which has another engine.

    FSA_ENGINE_PYTHON=ENV/bin/python python -m pytest -n 0 -m engine tests/engines

ENV is the environment of docs/serving.md, with the package peft besides; fsa needs
nothing of it. FSA_SMOLLM2 names the folder of
SmolLM2-135M-Instruct (docs/policies.md); tests that need it are left out without it.
"""

import json
import os
import pathlib
import subprocess

import pytest

# One thread each, since on a busy machine two wait for each other. Nothing is fetched.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


@pytest.fixture(scope="session")
def engine_python():
    """The Python of the other environment."""
    found = os.environ.get("FSA_ENGINE_PYTHON")
    if not found:
        pytest.skip("FSA_ENGINE_PYTHON names no Python")
    return found


@pytest.fixture(scope="session")
def smollm2():
    """The folder of SmolLM2-135M-Instruct."""
    found = os.environ.get("FSA_SMOLLM2")
    if not found:
        pytest.skip("FSA_SMOLLM2 names no folder")
    return pathlib.Path(found)


@pytest.fixture
def engine(engine_python):
    """Runs a program there: `engine(text, value, *paths)`, with JSON on its stdin."""

    def run(program, value, *paths):
        subprocess.run(
            [engine_python, "-c", program, *map(str, paths)],
            input=json.dumps(value),
            text=True,
            env={**os.environ, **ENVIRONMENT},
            check=True,
        )

    return run
