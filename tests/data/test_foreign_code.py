"""Code that comes with a model is never run, nor is it asked for whether to do so."""

import contextlib
import json

import pytest

from fsa.data.sentence_encoder import SentenceEncoder
from fsa.errors import InputError

CODE = """
import pathlib
pathlib.Path({path!r}).touch()
from transformers import BertConfig, BertModel, BertTokenizerFast
class OwnConfig(BertConfig):
    model_type = "own"
class Own(BertModel):
    config_class = OwnConfig
class OwnTokenizer(BertTokenizerFast):
    pass
def forward(self, features): return features
"""
AUTO = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own"}
TOKENIZER = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"auto_map": AUTO}),
        ("config.json", {"auto_map": AUTO, "model_type": "own"}),
        ("tokenizer_config.json", {"auto_map": TOKENIZER, "tokenizer_class": "Own"}),
        ("modules.json", "own.Own"),
    ],
)
def test_code_of_an_embedder(write_embedder, tmp_path, monkeypatch, name, content):
    sizes = dict(hidden_size=8, intermediate_size=8)
    folder = write_embedder(("tea", "milk"), **sizes)
    (folder / "own.py").write_text(CODE.format(path=str(tmp_path / "ran")))
    settings = json.loads((folder / name).read_text())
    if name == "modules.json":
        settings[0]["type"] = content
    else:
        settings |= content
    (folder / name).write_text(json.dumps(settings))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *a: asked.append(a) or "y")
    with contextlib.suppress(InputError):
        encoder = SentenceEncoder(folder)
        encoder.check_weights()
        encoder(["tea"])
    assert not asked and not (tmp_path / "ran").exists()
