"""Folders of language models that are damaged, foreign or not implemented."""

import json
import pathlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.malformed.case import Case, Spoil, both, line
from benchmarks.malformed.folders import faults_of, files_of


def _config_json(**changes: Any) -> Spoil:
    def spoil(folder):
        path = folder / "language" / "config.json"
        found = json.loads(path.read_text()) | changes
        kept = {name: value for name, value in found.items() if value != "absent"}
        path.write_text(json.dumps(kept))

    return spoil


def _tokenizer_json(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(folder):
        path = folder / "language" / "tokenizer.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return spoil


def _template(text: Any) -> Spoil:
    def spoil(folder):
        path = folder / "language" / "tokenizer_config.json"
        found = json.loads(path.read_text()) | {"chat_template": text}
        path.write_text(json.dumps(found))
        if isinstance(text, str):
            (folder / "language" / "chat_template.jinja").write_text(text)

    return spoil


def _pickled(folder: pathlib.Path) -> None:
    (folder / "language" / "model.safetensors").unlink()
    path = folder / "language" / "pytorch_model.bin"
    path.write_bytes(pickle.dumps({"weights": [1.0]}))


def _shards_missing(folder: pathlib.Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "gone.safetensors"}}
    path = folder / "language" / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    (folder / "language" / "model.safetensors").unlink()


MODEL_FAULTS: dict[str, Spoil] = {
    "pickled weights alone": _pickled,
    "shards missing": _shards_missing,
    "other architecture": _config_json(architectures=["BertModel"], model_type="bert"),
    "no architecture": _config_json(architectures=[], model_type="absent"),
    "architecture is a number": _config_json(architectures=5, model_type=5),
    "no hidden_size": _config_json(hidden_size="absent"),
    "hidden_size is a text": _config_json(hidden_size="wide"),
    "hidden_size is negative": _config_json(hidden_size=-16),
    "hidden_size is another": _config_json(hidden_size=32),
    "hidden_size is null": _config_json(hidden_size=None),
    "more layers than weights": _config_json(num_hidden_layers=3),
    "fewer layers than weights": _config_json(num_hidden_layers=1),
    "no layers": _config_json(num_hidden_layers=0),
    "heads that do not divide": _config_json(num_key_value_heads=3),
    "a vocabulary of another size": _config_json(vocab_size=7),
    "vocab_size is a list": _config_json(vocab_size=[5]),
    "unknown activation": _config_json(hidden_act="nosuch"),
    "unknown rope": _config_json(rope_scaling={"rope_type": "nosuch", "factor": 2.0}),
    "rope_scaling is a text": _config_json(rope_scaling="yarn"),
    "rope_theta is a text": _config_json(rope_theta="high"),
    "quantized": _config_json(quantization_config={"quant_method": "gptq", "bits": 4}),
    "rms_norm_eps is a text": _config_json(rms_norm_eps="small"),
    "tokenizer without a model": _tokenizer_json(lambda t: t.pop("model")),
    "tokenizer of an unknown model": _tokenizer_json(
        lambda t: t["model"].update(type="Nosuch")
    ),
    "token beyond the embedding": _tokenizer_json(
        lambda t: t["model"]["vocab"].update(novelty=99_999)
    ),
    "vocabulary is a list": _tokenizer_json(lambda t: t["model"].update(vocab=[])),
}
TEMPLATES: dict[str, Any] = {
    "open loop": "{% for m in messages %}",
    "open tag": "{% if",
    "unknown tag": "{% nosuch %}",
    "unknown filter": "{{ messages | nosuch }}",
    "raises": "{{ raise_exception('roles must alternate') }}",
    "raises a long text": "{{ raise_exception('no\\n' * 99) }}",
    "unsafe": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "unsafe call": "{{ messages.append.__globals__ }}",
    "unknown function": "{{ nosuch() }}",
    "divides by 0": "{{ 1 // 0 }}",
    "adds a number to a list": "{{ messages + 1 }}",
    "without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "too long a loop": "{% for i in range(999999999) %}a{% endfor %}",
    "index out of range": "{{ messages[99].content }}",
    "unknown words": "{% for m in messages %}xyzzy {{ m.content }}{% endfor %}",
    "a number": 5,
    "a list of texts": ["a", "b"],
    "a table": {"name": "default"},
}


# Nothing shows that a byte of the weights is another, and a tokenizer needs no config.
_SOUND = (
    ("model.safetensors", "damaged"),
    ("tokenizer_config.json", "missing"),
    ("tokenizer_config.json", "a directory"),
    ("tokenizer_config.json", "no fields"),
)


def models(sound: pathlib.Path) -> Iterator[Case]:
    """Yields language models that are damaged, foreign or not implemented."""
    users = {"sample": line("sample"), "train": line("train", config="policy.py")}
    for name in files_of(sound, "language"):
        # Everything of a model is in its weights, its config and its tokenizer.
        for what, fault in faults_of(name).items():
            if (pathlib.Path(name).name, what) in _SOUND:
                continue
            for user in users.values():
                yield Case(
                    f"{user[0]}: {name}: {what}",
                    user,
                    lambda folder, name=name, fault=fault: both(
                        lambda f: fault(f / name), _forget_scores
                    )(folder),
                )
    spoils = MODEL_FAULTS | {
        f"chat template: {what}": _template(text) for what, text in TEMPLATES.items()
    }
    for what, spoil in spoils.items():
        for user in users.values():
            yield Case(f"{user[0]}: {what}", user, both(spoil, _forget_scores))
        yield Case(f"steer: {what}", line("steer"), spoil)
    others = {
        "missing": "nowhere",
        "a file": "mine.py",
        "a dataset": "data/people",
        "a run": "runs/language_model",
        "empty": "",
        "an id of the hub": "gpt2",
    }
    for what, name in others.items():
        yield Case(f"sample: model is {what}", line("sample", model=name))
        yield Case(
            f"train: model is {what}",
            (
                *line("train", config="policy.py"),
                f"--config.language_model.path={name}",
            ),
            _forget_scores,
        )


def _forget_scores(folder: pathlib.Path) -> None:
    """Removes what the language model said of the choices, so that it is asked."""
    for path in (folder / "data" / "choices").glob("responses-*"):
        shutil.rmtree(path)
