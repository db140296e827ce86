"""docs/serving.md runs as it is written: adapters, vLLM, chats, samples.

What the page presupposes, a run of a policy and tables of choices, is made here, of a
small random model that reads bytes. The environment `engine` of the page is the one
that FSA_ENGINE_PYTHON names, so the first block, which makes it, is not run.
"""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import policies
import pytest

from fsa.data import files

pytestmark = pytest.mark.engine

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
SERVER = "vllm.entrypoints"
PROMPTS = "Explain tides.", "Describe a lake.", "Name a bird.", "Say why it rains."


def choices(prompts, is_short):
    """Choices of somebody who likes short answers, or long ones."""
    found = []
    for prompt in prompts:
        both = f"It is {prompt.lower()}", f"Well, let me tell you at length: {prompt}"
        chosen, rejected = both if is_short else both[::-1]
        found.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return found


@contextlib.contextmanager
def running(command, **options):
    """Runs a command, and ends it and its processes, with its output in the test's."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def shell(engine_python, tmp_path):
    """The folder of the page, and the environment of its commands."""
    commands = tmp_path / "bin"
    commands.mkdir()
    fsa = commands / "fsa"
    fsa.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fsa "$@"\n')
    fsa.chmod(0o755)
    (tmp_path / "engine").symlink_to(pathlib.Path(engine_python).parents[1])
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }

    def run(text, shown=None):
        line = ["bash", "-euo", "pipefail", "-c", text]
        return subprocess.run(
            line, cwd=tmp_path, env=environment, check=True, stdout=shown, text=True
        ).stdout

    run.environment = environment
    return run


def prepare(folder, shell):
    """Makes the run of a policy, and the tables."""
    policies.write_model_of_bytes(folder / "models" / "mine")
    rows = [
        {"user": f"{split} {i}", "split": split, **choice}
        for split, size in (("train", 4), ("valid", 2), ("test", 2))
        for i in range(size)
        for choice in choices([f"{p} {split}" for p in PROMPTS], i % 2)
    ]
    files.write_jsonl(folder / "choices.jsonl", rows)
    people = {"ann": 1, "bob": 0}
    told = [
        {"user": person, **choice}
        for person, is_short in people.items()
        for choice in choices(PROMPTS[:3], is_short)
    ]
    files.write_jsonl(folder / "people.jsonl", told)
    files.write_jsonl(folder / "ann.jsonl", choices(PROMPTS, 1))
    files.write_jsonl(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    fields = {
        "task.path": "data/mine",
        "language_model.path": "models/mine",
        "task.buckets": (128,),
        "task.max_context": 2,
        "task.num_targets": 2,
        "model.hidden": 8,
        "model.latent_dim": 3,
        "dpo.reward_steps": 2,
        "optimizer.learning_rate": 0.3,
        "train.steps": 6,
        "train.batch_size": 4,
        "train.validate_every": 3,
        "eval.num_context": (0, 2),
        "eval.num_targets": 2,
        "eval.num_resamples": 20,
    }
    flags = " ".join(f"'--config.{name}={value}'" for name, value in fields.items())
    shell("fsa prepare --choices=choices.jsonl --out=data/mine")
    config = ROOT / "experiments" / "policy" / "choices.py"
    shell(f"fsa train --config={config} {flags} --workdir=runs/mine")


def test_the_page(shell, tmp_path):
    with socket.socket() as port:
        port.settimeout(1)
        if not port.connect_ex(("127.0.0.1", 8000)):
            pytest.skip("something answers at port 8000, which the page takes")
    prepare(tmp_path, shell)
    (kind, installation), *blocks = BLOCKS
    assert kind == "bash" and "pip install" in installation
    printed = []
    with contextlib.ExitStack() as stack:
        for kind, text in blocks:
            if SERVER in text:
                line = ["bash", "-euo", "pipefail", "-c", text]
                where = dict(cwd=tmp_path, env=shell.environment)
                stack.enter_context(running(line, **where))
            elif kind == "python":
                (tmp_path / "chat.py").write_text(text)
                printed.append(shell("engine/bin/python chat.py", subprocess.PIPE))
            else:
                printed.append(shell(text, subprocess.PIPE))
        models = shell("curl --silent http://localhost:8000/v1/models", subprocess.PIPE)
    for name in ("nobody", "ann-2", "bob"):
        assert f'"id":"{name}"' in models
    assert '"id":"ann"' not in models
    (chat,) = (text for text in printed if text.startswith("nobody: "))
    assert re.search(r"^nobody: .*^ann: .*^bob: ", chat, re.DOTALL | re.MULTILINE)
    rows = [row for _, row in files.read_rows(tmp_path / "samples.jsonl")]
    assert len(rows) == 4 * len(PROMPTS) and {row["prompt"] for row in rows} == {
        *PROMPTS
    }
    assert (tmp_path / "adapters" / "ann-2" / "adapter_model.safetensors").is_file()
