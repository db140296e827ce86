"""What tests of several folders use: tiny runs, and command lines in this process."""

import contextlib
import dataclasses
import gc
import hashlib
import io
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import policies
import pytest
from absl import flags
from absl import logging as absl_logging
from compiling import compiled_quickly

from experiments.synthetic import two_types
from fsa.commands.main import run as run_command
from fsa.data import dataset, files
from fsa.data.ragged import Ragged
from fsa.data.sources import corpus
from fsa.data.users import UserTable
from fsa.models.reward import RewardModel
from fsa.recipes.config import resolve
from fsa.recipes.reward_model_run import build_loss, load_task
from fsa.recipes.run import build_optimizer, model_arguments
from fsa.training import reward_loss
from fsa.training.step import init_state

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# XLA compiles a training step in a third of the time without these emitters, and with a
# third less work in one part than in 32 parts for as many threads. It reads the
# variable when the first array is made, and so do the processes that tests start.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

# A job in the background of a script ignores Ctrl-C, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files of few tests that take long. They begin first, so that at the end no process
# waits for another one.
LONG = ("test_tutorial", "test_runner", "test_readme", "test_docs_site")


def pytest_collection_modifyitems(items):
    """Puts the files that take long first, and spreads the others.

    Two processes that are in the same folder at the same time compile the same programs
    twice; the one that comes later finds them among the compiled ones.
    """

    def place(item):
        name = item.path.stem
        return name not in LONG, hashlib.sha256(name.encode()).digest()

    items.sort(key=place)


def pytest_collection_finish():
    """Spares the garbage collector what was imported, which stays to the end."""
    gc.collect()
    gc.freeze()


# Makes any simulated experiment a matter of seconds, most of them compilation.
TINY = {
    "task.max_context": 2,
    "task.num_targets": 3,
    "model.hidden": 8,
    "model.latent_dim": 2,
    "objective.num_samples": 2,
    "optimizer.warmup_steps": 2,
    "train.steps": 8,
    "train.batch_size": 8,
    "train.steps_per_call": 2,
    "train.validate_every": 2,
    "train.average_decay": 0.5,
    "eval.num_context": (0, 2),
    "eval.num_targets": 3,
    "eval.users": 16,
    "eval.valid_users": 16,
    "eval.num_samples": 2,
    "eval.num_resamples": 20,
}


def tiny_config(model="np-btl", **fields):
    """The checked config of a tiny run on two types; fields by dotted name."""
    config = two_types.get_config(model)
    tiny = {**TINY, "model.latent_dim": config.model.latent_dim and 2, **fields}
    config.update_from_flattened_dict(tiny)
    return resolve(config)


def tiny_parts(config):
    """The (task, loss, optimizer, fresh state) of a run, built by its recipe."""
    task = load_task(config)
    model = RewardModel(**model_arguments(config, task.num_items))
    loss_fn = build_loss(config, model, task)
    optimizer = build_optimizer(config)
    variables = reward_loss.init_variables(model, task, jax.random.key(config["seed"]))
    return task, loss_fn, optimizer, init_state(variables, optimizer)


@pytest.fixture(scope="session")
def tiny():
    """Makes the config of a tiny run: `tiny("btl", **{"train.steps": 4})`."""
    return tiny_config


@pytest.fixture(scope="session")
def tiny_fields():
    """The fields that make a run tiny, by dotted name."""
    return TINY


@pytest.fixture(scope="session")
def parts():
    """Returns `tiny_parts`, which builds the parts of a tiny run."""
    return tiny_parts


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Folder of compiled programs, which all modules and pytest's workers share."""
    # The folder of a worker is in that of the session.
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return base / "compiled"


@pytest.fixture(scope="module")
def quick_compile(compiled):
    """Compiles every program once and with little optimization, for this module."""
    with compiled_quickly(compiled):
        yield


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory):
    """Folder of the tiny language model; not to be changed."""
    return policies.write_language_model(tmp_path_factory.mktemp("policy") / "language")


class PolicyPath(NamedTuple):
    """The way to a policy by command lines; none of it is to be changed.

    `folder` holds `language` and `choices`, as `policies.flags` wants.
    """

    folder: pathlib.Path
    prompts: pathlib.Path
    samples: pathlib.Path
    data: pathlib.Path
    run: pathlib.Path
    shown: "dict[str, Finished]"


@pytest.fixture(scope="session")
def policy_path(language_folder, compiled):
    """A policy of a few steps: sampled, prepared and trained."""
    folder = language_folder.parent
    names = ("prompts.jsonl", "samples.jsonl", "choices", "run")
    prompts, samples, data, run = (folder / name for name in names)
    rows = [
        {"prompt": prompt, "split": split}
        for split, of_split in corpus.split_prompts(0).items()
        for prompt in of_split[:10]
    ]
    files.write_jsonl(prompts, rows)
    lines = {
        "sample": [
            f"--model={language_folder}",
            f"--prompts={prompts}",
            "--num_samples=6",
            "--max_new_tokens=9",
            f"--out={samples}",
        ],
        "prepare": [
            f"--samples={samples}",
            "--attributes=corpus_formality",
            *(f"--{name}={value}" for name, value in policies.SAMPLED_USERS.items()),
            f"--out={data}",
        ],
        # A few steps are to show in what is written.
        "train": [
            *policies.flags(folder, **{"optimizer.learning_rate": 0.1}),
            f"--workdir={run}",
        ],
    }
    with compiled_quickly(compiled):
        shown = {name: run_launch(name, *line) for name, line in lines.items()}
    for finished in shown.values():
        assert finished.code == 0, finished.err
    return PolicyPath(folder, prompts, samples, data, run, shown)


@dataclasses.dataclass
class Finished:
    """How a command line ended."""

    code: int
    out: str
    err: str


def _forget(name):
    """Makes the next run of a command define its flags again."""
    sys.modules.pop(f"fsa.commands.{name}", None)
    # The fields of a config come from absl's own file.
    own = ("fsa.commands.", "absl.flags._flag")
    module_of = flags.FLAGS.find_module_defining_flag
    for flag in [flag for flag in flags.FLAGS if module_of(flag, "").startswith(own)]:
        delattr(flags.FLAGS, flag)
    # Else an experiment file would be read on top of the one before.
    sys.modules.pop("config_config", None)


def _end(message, code):
    """Ends a command as `fsa.exits.at_once` does, without ending the process."""
    print(message, file=sys.stderr)
    sys.exit(code)


def run_launch(name, *arguments, folder=REPOSITORY):
    """What `fsa NAME ARGUMENTS` does in a folder, without a process."""
    out, err = io.StringIO(), io.StringIO()
    own = logging.getLogger("fsa")
    logged = own.handlers[:], own.level, own.propagate
    verbosity = absl_logging.get_verbosity()
    argv, path, cache_dir = sys.argv, sys.path, jax.config.jax_compilation_cache_dir
    sys.argv = ["fsa", name, *map(str, arguments)]
    sys.path = path[:]
    # So that the new stderr alone gets the messages.
    own.handlers = []
    _forget(name)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(folder),
            # The real one ends the process, and that of the tests with it.
            mock.patch("fsa.exits.at_once", _end),
            pytest.raises(SystemExit) as ended,
        ):
            sys.exit(run_command())
    finally:
        _forget(name)
        sys.argv, sys.path = argv, path
        own.handlers, own.level, own.propagate = logged
        absl_logging.set_verbosity(verbosity)
        jax.config.update("jax_compilation_cache_dir", cache_dir)
    return Finished(ended.value.code or 0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def launch():
    """Runs a command: `launch("train", "--config=...")` gives code, out, err."""
    return run_launch


@pytest.fixture
def compile_for_tpu(tmp_path):
    """What `compile_for_tpu(config, topology, *flags)` finds: JSON of `fsa compile`.

    In a process of its own; skips the test where there is no TPU compiler.
    """
    pytest.importorskip("libtpu")

    def run(config, topology, *flags):
        out = tmp_path / "found.json"
        command = [sys.executable, "-m", "fsa", "compile", f"--config={config}"]
        subprocess.run(
            [*command, f"--topology={topology}", f"--out={out}", *flags],
            cwd=REPOSITORY,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            check=True,
        )
        return json.loads(out.read_text())

    return run


@pytest.fixture
def run_alone(tmp_path):
    """What a program prints as JSON, in a process that cannot import this repository.

    `run_alone(text, *arguments)`.
    """

    def run(program, *arguments):
        finished = subprocess.run(
            [sys.executable, "-I", "-c", program, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)

    return run


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the datasets beside the repository, where they are."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not there")
    return folder


@pytest.fixture
def command(tmp_path):
    """Runs a command line in an empty folder; returns the finished process."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def assert_same():
    """Asserts that two datasets are the same in every array, type and name."""

    def assert_same_array(a, b):
        np.testing.assert_array_equal(a, b)
        for what in ("dtype", "shape"):
            assert getattr(a, what, None) == getattr(b, what, None)

    def check(first, second):
        for field in dataclasses.fields(dataset.Dataset):
            if field.name != "users":
                a, b = getattr(first, field.name), getattr(second, field.name)
                np.testing.assert_array_equal(a, b)
                assert type(a) is type(b)
        for split, table in first.users.items():
            for field in dataclasses.fields(UserTable):
                a = getattr(table, field.name)
                b = getattr(second.users[split], field.name)
                if isinstance(a, Ragged):
                    assert_same_array(a.flat, b.flat)
                    assert_same_array(a.offsets, b.offsets)
                else:
                    assert_same_array(a, b)

    return check


@pytest.fixture
def write_embedder(tmp_path):
    """Writes a tiny random BERT with mean pooling, as sentence-transformers does.

    `write_embedder(words, **sizes)`, with sizes of a `BertConfig`, returns its folder;
    skips the test if sentence-transformers is not installed.
    """
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import torch
    import transformers

    def write(words, **sizes):
        vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words)
        bert = tmp_path / "bert"
        bert.mkdir()
        (bert / "vocab.txt").write_text("\n".join(vocabulary))
        tokenizer = transformers.BertTokenizerFast(vocab_file=str(bert / "vocab.txt"))
        tokenizer.save_pretrained(bert)
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(vocabulary),
            num_hidden_layers=1,
            num_attention_heads=2,
            **sizes,
        )
        transformers.BertModel(config).save_pretrained(bert)
        name = str(bert)
        model = sentence_transformers.SentenceTransformer(name, local_files_only=True)
        model.save(str(tmp_path / "tiny"))
        return tmp_path / "tiny"

    return write


# Those of tests/page are here, since a second file of this name would hide this one
# from tests that import it.
@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """What the page shows of a run about drinks that is hardly trained."""
    import serving_pages

    return serving_pages.of_drinks(tmp_path_factory.mktemp("page") / "drinks")


@pytest.fixture
def client(page, tmp_path):
    """Asks for routes as the page does."""
    import serving_pages
    from fastapi.testclient import TestClient

    app = serving_pages.application(page, tmp_path)
    with TestClient(app, base_url="http://127.0.0.1:8000") as found:
        yield found
