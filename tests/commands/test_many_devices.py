"""Commands that use trained models: the same on one device, on many, in processes.

`commands_on_devices.py` runs them on eight virtual devices. What they write is compared
with what the same command lines write here, on one device.
"""

import functools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import commands_on_devices
import numpy as np
import policies
import pytest
import safetensors.numpy

from fsa.data import dataset, files
from fsa.data.sources import corpus

pytestmark = pytest.mark.usefixtures("quick_compile")

TESTS = pathlib.Path(__file__).resolve().parents[1]
DEVICES = 8
# Weights are stored in two parts and computed in two; two parts of the examples.
SPLIT = ["--fsdp=2", "--tensor=2"]
PROMPTS = ["review the novel :", "assess the park :", "judge"]


def lines(split):
    """The command lines of each test, by name, in a folder that `copied` made."""
    write = ["--max_new_tokens=7", "--seed=3"]
    sample = ["sample", "--model=language", "--prompts=prompts.jsonl", *write]
    # More long texts than rows, so that rows are refilled.
    sample += ["--batch_size=1", "--max_new_tokens=128"]
    steer = ["steer", "--workdir=run", "--context=me.jsonl", *split]
    embed = ["embed_lm", "--data=items", "--model=language"]
    embed += ["--template={prompt} {option}"]
    return {
        "sample": [[*sample, "--num_samples=3", "--out=samples.jsonl", *split]],
        "steer": [
            [*steer, "--prompts=prompts.jsonl", *write, "--out=steered.jsonl"],
            [*steer, "--export=exported", "--adapter=adapter", "--adapter_rank=2"],
        ],
        "embed_lm": [[*embed, *split]],
        "people": [["evaluate", "--workdir=people"]],
        "policy": [["evaluate", "--workdir=run", *split]],
    }


EVERY = tuple(lines([]))


@pytest.fixture(scope="module")
def origin(language_folder, tmp_path_factory):
    """A folder with a language model, items and tables; not to be changed."""
    folder = tmp_path_factory.mktemp("origin")
    shutil.copytree(language_folder, folder / "language")
    policies.write_choices(folder / "items")
    files.write_jsonl(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    answers = [a for _, a in corpus.texts(1, 60) if len(a.split()) < 10]
    choice = {"prompt": PROMPTS[0], "chosen": answers[0], "rejected": answers[1]}
    files.write_jsonl(folder / "me.jsonl", [choice])
    return folder


@pytest.fixture(scope="module")
def policy(policy_path, tmp_path_factory):
    """A folder with the run of a policy and its data; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("choices", "run"):
        shutil.copytree(policy_path.folder / name, folder / name)
    for found in (folder / "choices").glob("responses-*"):
        shutil.rmtree(found)
    # Relative, so that copies are independent of each other.
    config = json.loads((folder / "run" / "config.json").read_text())
    for section, name in (("task", "choices"), ("language_model", "language")):
        config[section]["path"] = f"../{name}"
    (folder / "run" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def people(launch, tiny_fields, tmp_path_factory):
    """The run of a reward model; not to be changed."""
    folder = tmp_path_factory.mktemp("people")
    fields = [f"--config.{name}={value}" for name, value in tiny_fields.items()]
    config = TESTS.parent / "experiments" / "synthetic" / "two_types.py"
    trained = launch(
        "train", f"--config={config}:np-btl", *fields, "--workdir=people", folder=folder
    )
    assert trained.code == 0, trained.err
    return folder / "people"


@pytest.fixture(scope="module")
def copied(origin, request, tmp_path_factory):
    """`copied(name, ...)` is a new folder with what these command lines need."""

    def run(*names):
        folder = shutil.copytree(origin, tmp_path_factory.mktemp("copied") / "here")
        if "people" in names:
            run_dir = request.getfixturevalue("people")
            shutil.copytree(run_dir, folder / "people")
        if {"steer", "policy"} & set(names):
            trained = request.getfixturevalue("policy")
            shutil.copytree(trained, folder, dirs_exist_ok=True)
        return folder

    return run


def start(folder, found, num_devices, *process):
    """Starts commands_on_devices.py with a number of devices."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    own = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # Collectives wait for each other in threads, of which there must be enough.
        "PJRT_NPROC": "32",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
    }
    given = folder / "lines.json"
    given.write_text(json.dumps(found))
    program = [sys.executable, commands_on_devices.__file__, folder, given]
    return subprocess.Popen(
        [*program, *map(str, process)],
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    """What each process printed."""
    shown = []
    for process in processes:
        out, err = process.communicate(timeout=1800)
        assert process.returncode == 0, err
        # Gloo prints to the same stream.
        shown.append(json.loads(out.splitlines()[-1]))
    return shown


@pytest.fixture(scope="module")
def alone(copied, launch):
    """What one device writes for a test: `alone(name)` is a folder."""

    @functools.cache
    def run(name):
        folder = copied(name)
        for line in lines([])[name]:
            finished = launch(*line, folder=folder)
            assert finished.code == 0, finished.err
        return folder

    return run


def rows_of(path):
    return [row for _, row in files.read_rows(path)]


def assert_same_tree(found, wanted, tolerance):
    """JSON of the same names, texts and, up to a tolerance, numbers."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        found, wanted = list(found.values()), list(wanted.values())
    if isinstance(wanted, list):
        for pair in zip(found, wanted, strict=True):
            assert_same_tree(*pair, tolerance)
    elif isinstance(wanted, float):
        np.testing.assert_allclose(found, wanted, tolerance, tolerance)
    else:
        assert found == wanted


def assert_same(name, folder, wanted, shown):
    """What a command line wrote is what it wrote on one device."""
    if name == "sample":
        assert rows_of(folder / "samples.jsonl") == rows_of(wanted / "samples.jsonl")
    elif name == "steer":
        assert rows_of(folder / "steered.jsonl") == rows_of(wanted / "steered.jsonl")
        for file in ("exported/model", "adapter/adapter_model"):
            own, others = (
                safetensors.numpy.load_file(f"{each}/{file}.safetensors")
                for each in (folder, wanted)
            )
            assert own.keys() == others.keys()
            for tensor, value in others.items():
                np.testing.assert_allclose(own[tensor], value, 1e-4, 1e-5)
    elif name == "embed_lm":
        own, others = (dataset.load(each / "items") for each in (folder, wanted))
        np.testing.assert_allclose(own.features, others.features, 1e-6, 1e-6)
        assert own.embedding == others.embedding
    else:
        file = f"{'people' if name == 'people' else 'run'}/evaluation.json"
        own, others = (
            json.loads((each / file).read_text()) for each in (folder, wanted)
        )
        # A device predicts people by itself, but computes a policy with others.
        assert_same_tree(own, others, 1e-6 if name == "people" else 1e-5)
        assert "Written:" in shown[0]


def keyed(found, names):
    """The command lines of some tests, as one list and as keys of what they print."""
    every = [line for name in names for line in found[name]]
    return every, list(map(tuple, every))


@pytest.fixture(scope="module")
def together(copied):
    """What eight devices write, and what the commands printed."""
    folder = copied(*EVERY)
    every, keys = keyed(lines(SPLIT), EVERY)
    (shown,) = finish([start(folder, every, DEVICES)])
    assert shown["devices"] == DEVICES
    return folder, dict(zip(keys, shown["shown"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_many_devices_write_what_one_does(name, alone, together):
    folder, shown = together
    found = [shown[tuple(line)] for line in lines(SPLIT)[name]]
    assert_same(name, folder, alone(name), found)


@pytest.fixture(scope="module")
def in_processes(copied):
    """What two processes write, and what the commands printed in each of them."""
    folder = copied(*EVERY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    found = lines(SPLIT)
    every, keys = keyed(found, EVERY)
    started = [
        start(folder, every, DEVICES // 2, coordinator, 2, process)
        for process in range(2)
    ]
    first, second = (
        dict(zip(keys, each["shown"], strict=True)) for each in finish(started)
    )
    return folder, first, second


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_two_processes_write_what_one_does(name, alone, in_processes):
    """The first of them writes and prints; the other one is silent."""
    folder, first, second = in_processes
    found = [tuple(line) for line in lines(SPLIT)[name]]
    assert_same(name, folder, alone(name), [first[line] for line in found])
    assert not any(second[line] for line in found)
