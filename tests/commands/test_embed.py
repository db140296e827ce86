"""`fsa embed`, with a real model if sentence-transformers is installed."""

import importlib.util

import numpy as np
import pytest

from fsa.data import dataset
from fsa.data.collect import collect
from fsa.data.tables import Choice

WORDS = ("tea", "milk", "rum", "which", "drink")


@pytest.fixture
def data_dir(tmp_path):
    """A dataset of three items without features."""
    choices = [
        Choice("ann", "which drink", "tea", "milk {prompt}", "train"),
        Choice("bob", "which drink", "tea", "rum", "test"),
    ]
    dataset.write(tmp_path / "data", collect(choices, []))
    return tmp_path / "data"


@pytest.fixture
def model_dir(write_embedder):
    sizes = dict(hidden_size=12, intermediate_size=16, max_position_embeddings=16)
    return write_embedder(WORDS, **sizes)


def fails(finished, named):
    assert finished.code == 2
    last = finished.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert named in last
    assert "Traceback" not in finished.err


def test_live(launch, data_dir, model_dir):
    from sentence_transformers import SentenceTransformer

    arguments = ("embed", f"--data={data_dir}", f"--model={model_dir}")
    finished = launch(*arguments)
    assert finished.code == 0, finished.err
    assert "Batches: 100%" in finished.err
    data = dataset.load(data_dir)
    assert data.embedder == "tiny"
    model = SentenceTransformer(str(model_dir), local_files_only=True)
    np.testing.assert_allclose(data.features, model.encode(data.texts), atol=1e-6)

    fails(launch(*arguments), "overwrite")
    template = r"--template={prompt}\n{option}"
    finished = launch(*arguments, "--overwrite", template, "--batch_size=2")
    assert finished.code == 0, finished.err
    templated = dataset.load(data_dir)
    assert templated.embedder == r"tiny of '{prompt}\n{option}'"
    wanted = model.encode([f"which drink\n{text}" for text in data.texts])
    np.testing.assert_allclose(templated.features, wanted, atol=1e-6)


def test_a_folder_without_a_model(launch, data_dir, model_dir):
    empty = data_dir.parent
    fails(launch("embed", f"--data={data_dir}", f"--model={empty}"), str(empty))


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is not None,
    reason="sentence-transformers is installed",
)
def test_without_the_extra(launch, data_dir):
    finished = launch("embed", f"--data={data_dir}", f"--model={data_dir}")
    fails(finished, "pip install '.[embed]'")
    assert dataset.load(data_dir, need_features=False).embedder == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--model=none", "none: no such folder"),
        ("--data=none", "none: "),
        ("--template={answer}", "'answer'"),
        ("--template={prompt}", "{option}"),
    ],
)
def test_bad_flags(launch, data_dir, change, named):
    given = (f"--data={data_dir}", f"--model={data_dir}", change)
    fails(launch("embed", *given), named)
