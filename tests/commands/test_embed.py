"""`fsa embed`, with a real model if sentence-transformers is installed."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import safetensors.numpy

from fsa import bars
from fsa.data import dataset
from fsa.data.collect import collect
from fsa.data.embedding import embed_dataset
from fsa.data.sentence_encoder import SentenceEncoder
from fsa.data.tables import Choice
from fsa.errors import InputError
from fsa.inference.option_lookup import OptionLookup

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


def test_live(launch, data_dir, model_dir, monkeypatch):
    from sentence_transformers import SentenceTransformer

    arguments = ("embed", f"--data={data_dir}", f"--model={model_dir}")
    monkeypatch.setattr(bars, "_is_drawn", lambda: True)
    finished = launch(*arguments)
    assert finished.code == 0, finished.err
    assert "Embedding: 100%" in finished.err and "loading" in finished.err
    data = dataset.load(data_dir)
    assert data.embedding == dataset.Embedding(
        "tiny", "{option}", SentenceEncoder(model_dir).digest
    )
    model = SentenceTransformer(str(model_dir), local_files_only=True)
    np.testing.assert_allclose(data.features, model.encode(data.texts), atol=1e-6)

    fails(launch(*arguments), "overwrite")
    template = r"--template={prompt}\n{option}"
    finished = launch(*arguments, "--overwrite", template, "--batch_size=2")
    assert finished.code == 0, finished.err
    templated = dataset.load(data_dir)
    assert templated.embedding == dataclasses.replace(
        data.embedding, template="{prompt}\n{option}"
    )
    wanted = model.encode([f"which drink\n{text}" for text in data.texts])
    np.testing.assert_allclose(templated.features, wanted, atol=1e-6)


def test_weights_that_do_not_fit_the_config(launch, data_dir, model_dir):
    """Otherwise the layers that have none would be random."""
    weights = safetensors.numpy.load_file(model_dir / "model.safetensors")
    renamed = {key.replace("query", "question"): x for key, x in weights.items()}
    assert renamed.keys() != weights.keys()
    safetensors.numpy.save_file(
        renamed, model_dir / "model.safetensors", metadata={"format": "pt"}
    )
    embed = "embed", f"--data={data_dir}", f"--model={model_dir}"
    fails(launch(*embed), "attention.self.query")
    # So they are found where the model has a folder of its own, as older ones have.
    inner = model_dir / "0_Transformer"
    inner.mkdir()
    for path in [*model_dir.glob("*token*"), *model_dir.glob("vocab*")]:
        path.rename(inner / path.name)
    for name in ("config.json", "model.safetensors", "sentence_bert_config.json"):
        (model_dir / name).rename(inner / name)
    modules = json.loads((model_dir / "modules.json").read_text())
    modules[0]["path"] = inner.name
    (model_dir / "modules.json").write_text(json.dumps(modules))
    fails(launch(*embed), "attention.self.query")
    # BERT's pooler is no part of a sentence encoder, and some folders lack it.
    kept = {key: x for key, x in weights.items() if "pooler" not in key}
    assert kept.keys() != weights.keys()
    safetensors.numpy.save_file(
        kept, inner / "model.safetensors", metadata={"format": "pt"}
    )
    finished = launch(*embed)
    assert finished.code == 0, finished.err


def test_a_ranker_embeds_by_the_model_of_the_dataset(data_dir, model_dir, monkeypatch):
    """It loads the folder once, and refuses the folder of another model."""
    import sentence_transformers

    data = embed_dataset(data_dir, model_dir, template="{prompt}: {option}")
    lookup = OptionLookup(12, data_dir, model_dir)
    loaded = []
    original = sentence_transformers.SentenceTransformer

    def load(*arguments, **options):
        loaded.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", load)
    found = [lookup("options", [text, "tea"]).features for text in ("rum tea", "drink")]
    assert len(loaded) == 1
    model = original(str(model_dir), local_files_only=True)
    wanted = model.encode(["which drink: rum tea", "which drink: drink"])
    np.testing.assert_allclose([x[0] for x in found], wanted, atol=1e-6)
    np.testing.assert_array_equal(found[0][1], data.features[data.texts.index("tea")])

    (model_dir / ".DS_Store").write_text("of the file manager")
    (model_dir / "README.md").write_text("changed")
    assert OptionLookup(12, data_dir, model_dir)("options", ["tea"]).item >= 0
    settings = model_dir / "tokenizer_config.json"
    settings.write_text(settings.read_text() + " ")
    with pytest.raises(InputError, match="embedder"):
        OptionLookup(12, data_dir, model_dir)("options", ["tea"])


def test_files_of_others_are_spared(data_dir, launch, model_dir):
    """Embedding writes the folder anew, which need not be what its user expects."""
    for name in (".DS_Store", "notes.txt"):
        (data_dir / name).write_text("dear")
    arguments = ("embed", f"--data={data_dir}", f"--model={model_dir}")
    finished = launch(*arguments)
    fails(finished, str(data_dir / "notes.txt"))
    assert "embedding rewrites" in finished.err
    (data_dir / "notes.txt").unlink()
    assert launch(*arguments).code == 0
    assert dataset.load(data_dir).features.shape[1] > 0


@pytest.fixture
def files_of_a_model(tmp_path):
    """A folder with all files of a sentence encoder, of which none can be loaded."""
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    own = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": own + "Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": own + "Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
        (folder / name).write_text("{}")
    weights = {"weight": np.zeros(100, np.float32)}
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def retype(path, kind):
    path.write_text(path.read_text().replace("sentence_transformers.models", kind))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(
                folder / "pytorch_model.bin"
            ),
            "safetensors",
        ),
        (lambda folder: (folder / "1_Pooling/a.pt").touch(), "1_Pooling/a.pt"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter"),
        (lambda folder: (folder / "modules.json").unlink(), "embed_lm"),
        (lambda folder: (folder / "modules.json").write_text("[1]"), "modules.json"),
        (lambda folder: cut(folder / "modules.json"), "modules.json"),
        (lambda folder: retype(folder / "modules.json", "evil"), "evil.Transformer"),
        (
            lambda folder: (folder / "router_config.json").write_text(
                json.dumps({"types": {"query": "evil.Module"}})
            ),
            "evil.Module",
        ),
    ],
)
def test_folders_that_are_refused(
    launch, data_dir, files_of_a_model, change, named, monkeypatch
):
    """Before anything is loaded; no code that lies about is run."""
    (files_of_a_model / "evil.py").write_text("raise SystemExit(99)")
    monkeypatch.syspath_prepend(files_of_a_model)
    change(files_of_a_model)
    before = (data_dir / "store.json").read_bytes()
    fails(launch("embed", f"--data={data_dir}", f"--model={files_of_a_model}"), named)
    assert (data_dir / "store.json").read_bytes() == before


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is not None,
    reason="sentence-transformers is installed",
)
def test_without_the_extra(launch, data_dir, files_of_a_model):
    finished = launch("embed", f"--data={data_dir}", f"--model={files_of_a_model}")
    fails(finished, "'.[embed]'")
    assert dataset.load(data_dir, need_features=False).embedder == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--model=none", "none: no such folder"),
        ("--data=none", "none: "),
        ("--template={answer}", "'answer'"),
        ("--template={prompt}", "{option}"),
        ("--template={option!r:>1000000000000}", "'option'"),
        ("--template={option.upper}", "'option.upper'"),
        ("--template={option", "--template"),
    ],
)
def test_bad_flags(launch, data_dir, change, named):
    given = (f"--data={data_dir}", f"--model={data_dir}", change)
    fails(launch("embed", *given), named)
