"""`launch/embed.py`, live where sentence-transformers is installed."""

import importlib.util

import numpy as np
import pytest

from fsa.data import dataset
from fsa.data.collect import collect
from fsa.data.tables import Choice

WORDS = ("tea", "milk", "rum", "which", "drink")


@pytest.fixture
def data_dir(tmp_path):
    """A store of three items without features."""
    choices = [
        Choice("ann", "which drink", "tea", "milk {prompt}", "train"),
        Choice("bob", "which drink", "tea", "rum", "test"),
    ]
    dataset.write(tmp_path / "data", collect(choices, []))
    return tmp_path / "data"


@pytest.fixture
def model_dir(tmp_path):
    """A tiny random BERT with mean pooling, saved as sentence-transformers does."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import transformers

    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(vocab_file=str(bert / "vocab.txt"))
    tokenizer.save_pretrained(bert)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(bert)
    model = sentence_transformers.SentenceTransformer(str(bert), local_files_only=True)
    model.save(str(tmp_path / "tiny"))
    return tmp_path / "tiny"


def fails(finished, message):
    assert finished.returncode == 2
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in finished.stderr


def test_live(command, data_dir, model_dir):
    from sentence_transformers import SentenceTransformer

    arguments = ("-m", "launch.embed", f"--data={data_dir}", f"--model={model_dir}")
    finished = command(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert "Batches: 100%" in finished.stderr
    data = dataset.load(data_dir)
    assert data.embedder == "tiny"
    model = SentenceTransformer(str(model_dir), local_files_only=True)
    np.testing.assert_allclose(data.features, model.encode(data.texts), atol=1e-6)

    fails(command(*arguments), "has features of tiny; pass --overwrite")
    template = r"--template={prompt}\n{option}"
    finished = command(*arguments, "--overwrite", template, "--batch_size=2")
    assert finished.returncode == 0, finished.stderr
    templated = dataset.load(data_dir)
    assert templated.embedder == r"tiny of '{prompt}\n{option}'"
    wanted = model.encode([f"which drink\n{text}" for text in data.texts])
    np.testing.assert_allclose(templated.features, wanted, atol=1e-6)


def test_a_folder_without_a_model(command, data_dir, model_dir):
    empty = data_dir.parent
    finished = command("launch/embed.py", f"--data={data_dir}", f"--model={empty}")
    fails(finished, f"--model={empty}: no sentence-transformers model")


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is not None,
    reason="sentence-transformers is installed",
)
def test_without_the_extra(command, data_dir):
    finished = command("launch/embed.py", f"--data={data_dir}", f"--model={data_dir}")
    fails(finished, "pip install fsa[embed]")
    assert dataset.load(data_dir, need_features=False).embedder == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model=none"], "--model=none: no such folder; fetch"),
        (["--data=none"], "none: no store is there"),
        (["--template={answer}"], "--template={answer}: KeyError('answer')"),
        (["--template={prompt}"], "lacks {option}"),
    ],
)
def test_bad_flags(command, data_dir, changes, message):
    given = (f"--data={data_dir}", f"--model={data_dir}", *changes)
    fails(command("launch/embed.py", *given), message)
