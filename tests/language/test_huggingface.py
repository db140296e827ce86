"""Hugging Face folders: parity with transformers, what is written, what is refused.

`golden` has a tiny random model of each family with the logits that transformers
computed (make_golden.py). Where PyTorch is installed they are also compared live.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from slow import slow_but

from fsa import digests
from fsa.data.sources import corpus
from fsa.errors import InputError
from fsa.language import huggingface
from fsa.language.huggingface import weights
from fsa.language.huggingface.architecture import arguments, read_config

pytestmark = pytest.mark.usefixtures("quick_compile")

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "language" / "golden"
STORIES = REPOSITORY.parent / "shared" / "data" / "stories260K"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir())
WRITTEN = slow_but(("llama", "qwen2_window", "gemma3"), FAMILIES)
# For some families, arguments that set them apart, at another family's values.
DISTINCT = {
    "llama3": {"rope_band": None, "rope_factor": 1.0},
    "qwen2_window": {"windows": None},
    "gemma2": {"attention_soft_cap": None},
    "gemma3": {"local_rope_theta": None},
    "llama_bias": {"biases": ("attention/query", "attention/key", "attention/value")},
    "qwen3_bias": {"biases": ()},
}


@functools.cache
def loaded(name):
    return huggingface.load(GOLDEN / name)


@functools.cache
def golden(name):
    with np.load(GOLDEN / name / "logits.npz") as file:
        return file["tokens"], file["logits"]


@functools.cache
def apply(model):
    return jax.jit(model.apply)


def logits(model, params, tokens):
    return np.asarray(apply(model)(params, tokens)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name):
    model, params = loaded(name)
    tokens, wanted = golden(name)
    np.testing.assert_allclose(logits(model, params, tokens), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", DISTINCT)
def test_golden_files_tell_families_apart(name):
    model, params = loaded(name)
    tokens, wanted = golden(name)
    other = model.clone(**DISTINCT[name])
    assert np.abs(logits(other, params, tokens) - wanted).max() > 1e-2


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_loads_in_transformers(name, tmp_path):
    """With changed weights in several files, and other tokens than the golden ones."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, params = loaded(name)
    params = jax.tree.map(lambda x: x * 0.9, params)
    config = read_config(GOLDEN / name)
    huggingface.save(tmp_path / "new", config, params, max_shard_bytes=9000)
    assert len(list(tmp_path.glob("new/*.safetensors"))) > 2
    kind = getattr(transformers, config["architectures"][0])
    theirs, report = kind.from_pretrained(
        tmp_path / "new", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys"))
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (3, 23))
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(logits(model, params, tokens), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 5000])
def test_what_is_written_is_read_again(max_shard_bytes, tmp_path):
    _, params = loaded("qwen2")
    config = read_config(GOLDEN / "qwen2")
    huggingface.save(tmp_path / "new", config, params, max_shard_bytes=max_shard_bytes)
    _, again = huggingface.load(tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    # And nothing is left beside it.
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    index = tmp_path / "new" / "model.safetensors.index.json"
    assert index.exists() == (max_shard_bytes == 5000)


def test_dtype_is_written_and_read(tmp_path):
    _, params = loaded("llama")
    config = read_config(GOLDEN / "llama")
    huggingface.save(tmp_path / "low", config, params, dtype=jnp.bfloat16)
    model, low = huggingface.load(tmp_path / "low")
    assert model.dtype == model.param_dtype == jnp.bfloat16
    assert read_config(tmp_path / "low")["dtype"] == "bfloat16"
    wanted = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    jax.tree.map(np.testing.assert_array_equal, low, wanted)
    model, wide = huggingface.load(tmp_path / "low", jnp.float32)
    assert model.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, wide, wanted)


def copy(name, folder, change=None, **fields):
    """A golden folder with changed tensors and config fields."""
    shutil.copytree(GOLDEN / name, folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    if change:
        change(tensors)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    config = {**read_config(folder), **fields}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_several_dtypes_in_one_folder(tmp_path):
    wanted = {}

    def change(tensors):
        for i, name in enumerate(sorted(tensors)):
            kinds = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
            tensors[name] = tensors[name].astype(kinds[i % 4])
        wanted.update(tensors)

    _, params = huggingface.load(copy("llama", tmp_path / "mixed", change))
    layers = params["params"]["layers"]
    for i in range(3):
        name = f"model.layers.{i}.mlp.up_proj.weight"
        np.testing.assert_array_equal(
            layers["mlp"]["up"]["kernel"][i], wanted[name].astype(np.float32).T
        )
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("chunk", [2**20, 50])
def test_a_part_of_a_parameter_is_read_alone(chunk, monkeypatch):
    """Reads what a device of a sharding asks for, a few rows of a tensor at a time."""
    monkeypatch.setattr(weights, "_CHUNK", chunk)
    folder = GOLDEN / "qwen2"
    model, params = loaded("qwen2")
    flat = {
        jax.tree_util.keystr(path[1:], simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    tensors = weights.find_tensors(folder)
    rng = np.random.default_rng(0)
    for path, parameter in weights.parameters_of(model).items():
        for _ in range(5):
            bounds = [sorted(rng.choice(n + 1, 2, False)) for n in parameter.shape]
            index = tuple(slice(int(a), int(b)) for a, b in bounds)
            part = weights.read_part(parameter, index, tensors, np.dtype(np.float32))
            np.testing.assert_array_equal(part, np.asarray(flat[path])[index])


def test_shardings_are_those_asked_for():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    asked = {}

    def sharding(path, shape):
        asked[path] = shape
        spec = jax.sharding.PartitionSpec(*[None] * (len(shape) - 1), "data")
        return jax.sharding.NamedSharding(mesh, spec)

    _, params = huggingface.load(GOLDEN / "llama", sharding=sharding)
    jax.tree.map(np.testing.assert_array_equal, params, loaded("llama")[1])
    kernel = params["params"]["layers"]["attention"]["out"]["kernel"]
    assert kernel.sharding == sharding("", kernel.shape)
    assert asked["params/layers/attention/out/kernel"] == kernel.shape


def drop(name):
    return lambda tensors: tensors.pop(name)


def set_to(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


UP = "model.layers.1.mlp.up_proj.weight"
TIED = "lm_head.weight"
TENSORS = {
    "missing": ("llama", drop(UP), UP),
    "extra": ("llama", set_to("x.weight", np.zeros(2)), "x.weight"),
    "shape": ("llama", set_to(UP, np.zeros((28, 21))), UP),
    "integers": ("llama", set_to(UP, np.zeros((28, 20), np.int8)), UP),
    "a layer more": (
        "llama",
        set_to("model.layers.3.mlp.up_proj.weight", np.zeros((28, 20))),
        "layers.3",
    ),
    "a head of its own": (
        "smollm2",
        set_to(TIED, np.zeros((61, 24), np.float32)),
        "tie_word_embeddings",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(case, tmp_path, monkeypatch):
    name, change, message = TENSORS[case]
    folder = copy(name, tmp_path / "bad", change)
    monkeypatch.setattr(jax, "device_put", None)  # nothing reaches a device
    with pytest.raises(InputError, match=message) as raised:
        huggingface.load(folder)
    assert "\n" not in str(raised.value)


def test_tensors_that_older_files_repeat_are_fine(tmp_path):
    def change(tensors):
        tensors[TIED] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)

    _, params = huggingface.load(copy("smollm2", tmp_path / "old", change))
    jax.tree.map(np.testing.assert_array_equal, params, loaded("smollm2")[1])


def shards(folder):
    huggingface.save(
        folder, read_config(GOLDEN / "llama"), loaded("llama")[1], max_shard_bytes=9000
    )
    return sorted(folder.glob("*.safetensors"))


def test_files_that_are_missing_or_damaged_are_refused(tmp_path):
    second = shards(tmp_path / "model")[1]
    content = second.read_bytes()
    for cut in (0, 5, 100, len(content) - 4):
        second.write_bytes(content[:cut])
        with pytest.raises(InputError, match=second.name):
            huggingface.load(tmp_path / "model")
    second.unlink()
    with pytest.raises(InputError, match=second.name):
        huggingface.load(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="index.json"):
        huggingface.load(tmp_path / "model")
    with pytest.raises(InputError, match="config.json"):
        huggingface.load(tmp_path / "nowhere")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json"):
        huggingface.load(tmp_path / "model")


def test_saving_refuses_what_does_not_fit(tmp_path):
    config, (_, params) = read_config(GOLDEN / "llama"), loaded("llama")
    with pytest.raises(InputError, match=str(tmp_path)):
        huggingface.save(tmp_path, config, params)
    with pytest.raises(InputError, match="params/layers/mlp/down/kernel"):
        huggingface.save(tmp_path / "new", {**config, "intermediate_size": 30}, params)
    with pytest.raises(InputError, match="params/unembed/kernel"):
        huggingface.save(
            tmp_path / "new", {**config, "tie_word_embeddings": True}, params
        )
    assert not list(tmp_path.iterdir())


# (family, field, value), and the field that the message names if it is another one.
REFUSED = [
    ("llama", "architectures", ["MistralForCausalLM"]),
    ("llama", "architectures", None),
    ("llama", "model_type", "mistral"),
    ("llama", "hidden_size", None),
    ("llama", "num_hidden_layers", "3"),
    ("llama", "num_key_value_heads", 3),
    ("llama", "head_dim", 5),
    ("llama", "hidden_act", "relu"),
    ("llama", "attention_bias", "yes"),
    ("qwen2", "attention_bias", True),
    ("qwen3", "mlp_bias", True),
    ("llama", "sliding_window", 64),
    ("llama", "quantization_config", {"bits": 4}),
    ("llama", "partial_rotary_factor", 0.5),
    ("llama", "rope_theta", 5e5),
    ("llama", "rope_parameters", {"rope_type": "yarn", "factor": 2.0}, "rope_type"),
    ("llama", "rope_parameters", {"rope_type": "linear"}, "factor"),
    ("llama", "rope_parameters", {"rope_type": "default", "factor": 2.0}, "factor"),
    ("llama", "rope_scaling", {"type": "dynamic", "factor": 2.0}, "rope_type"),
    ("llama", "tie_word_embeddings", "no"),
    ("llama", "a_field_of_the_future", 7),
    ("qwen2_window", "layer_types", ["full_attention", "other", "other"]),
    ("qwen2_window", "layer_types", ["full_attention"]),
    ("qwen2_window", "use_sliding_window", False, "layer_types"),
    ("qwen2_window", "sliding_window", None, "layer_types"),
    ("qwen3", "num_key_value_heads", None),
    ("gemma2", "use_bidirectional_attention", True),
    ("gemma2", "hidden_act", "silu"),
    ("gemma3", "attn_logit_softcapping", 50.0),
    (
        "gemma3",
        "rope_parameters",
        {"sliding_attention": {"rope_type": "linear", "factor": 2.0}},
        "sliding_attention",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: "-".join(case[:2]))
def test_fields_that_are_not_implemented_are_refused(case):
    name, field, value, *named = case
    config = read_config(GOLDEN / name)
    arguments(config)
    changed = {**config, field: value}
    if field in ("partial_rotary_factor", "rope_scaling"):
        # Else two fields would disagree.
        changed["rope_parameters"] = None
    with pytest.raises(InputError, match=(named or [field])[0]) as raised:
        arguments(changed, "x/config.json")
    assert str(raised.value).startswith("x/config.json: ")
    assert "\n" not in str(raised.value)


def test_fields_that_change_no_number_are_ignored():
    """As real configs have them."""
    ignored = {
        "attention_dropout": 0.1,
        "classifier_dropout": 0.1,
        "hidden_dropout_prob": 0.1,
        "embd_pdrop": 0.1,
        "unsloth_fixed": True,
        "unsloth_version": "2026.1",
        "tokenizer_class": "LlamaTokenizer",
        "max_sequence_length": 2048,
        "unk_token_id": 0,
    }
    for name in FAMILIES:
        config = read_config(GOLDEN / name)
        assert arguments({**config, **ignored}) == arguments(config)


def test_older_configs_mean_the_same():
    """Fields as transformers 4 wrote them."""
    new = read_config(GOLDEN / "gemma3")
    old = {**new, "rope_theta": 1000.0, "rope_local_base_freq": 10.0}
    old["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    old |= {"rope_parameters": None, "layer_types": None, "sliding_window_pattern": 2}
    old |= {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}
    assert arguments(old) == arguments(new)
    new = read_config(GOLDEN / "llama3")
    scaling = dict(new["rope_parameters"])
    old = {**new, "rope_parameters": None, "rope_theta": scaling.pop("rope_theta")}
    assert arguments({**old, "rope_scaling": scaling}) == arguments(new)
    new = read_config(GOLDEN / "qwen2_window")
    assert arguments({**new, "layer_types": None}) == arguments(new)
    new = read_config(GOLDEN / "gemma2")
    assert arguments({**new, "layer_types": None}) == arguments(new)
    assert arguments({**new, "layer_types": None, "sliding_window": None}) == {
        **arguments(new),
        "windows": None,
    }
    uncapped = arguments({**new, "attn_logit_softcapping": None})
    assert uncapped["attention_soft_cap"] is None


def test_defaults_are_those_of_transformers():
    """A config with sizes alone."""
    transformers = pytest.importorskip("transformers")
    for name in ("llama", "qwen2", "qwen3", "gemma2", "gemma3"):
        config = read_config(GOLDEN / name)
        sizes = {k: v for k, v in config.items() if k.endswith("_size")}
        sizes |= {k: v for k, v in config.items() if k.startswith("num_")}
        sizes |= {"hidden_size": 24, "architectures": config["architectures"]}
        theirs = transformers.AutoConfig.for_model(config["model_type"], **sizes)
        written = {**theirs.to_dict(), "architectures": config["architectures"]}
        assert arguments(sizes) == arguments(written), name


@pytest.mark.slow
@pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is not there")
def test_a_real_model(tmp_path):
    model, params = huggingface.load(STORIES)
    cases = json.loads((STORIES / "golden.json").read_text())["cases"]
    tokenizer = huggingface.load_tokenizer(STORIES)
    with np.load(STORIES / "golden.npz") as file:
        for i, case in enumerate(cases):
            ids = file[f"input_ids_{i}"].reshape(1, -1)
            found = logits(model, params, ids)[0]
            wanted = file[f"logits_{i}"].reshape(found.shape)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
            assert tokenizer(case["prompt"])["input_ids"] == ids[0].tolist()
            # Each greedy token is the most likely one after those before it.
            text = np.array([case["input_ids"] + case["greedy_tokens"]])
            best = logits(model, params, text)[0].argmax(-1)
            assert best[len(ids[0]) - 1 : -1].tolist() == case["greedy_tokens"]
    assert huggingface.load_generation_config(STORIES).eos_token_id is not None
    # A copy has all that is needed to run it.
    huggingface.save(tmp_path / "copy", read_config(STORIES), params, source=STORIES)
    again = huggingface.load_tokenizer(tmp_path / "copy")
    assert again("Once upon a time") == tokenizer("Once upon a time")
    jax.tree.map(
        np.testing.assert_array_equal, huggingface.load(tmp_path / "copy")[1], params
    )


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="tokenizer.json"):
        huggingface.load_tokenizer(GOLDEN / "llama")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=f"^{tmp_path}: AutoTokenizer") as raised:
        huggingface.load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


COUNTED = {
    "config.json": "{}",
    "model.safetensors": "weights",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
    "generation_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/rag.jinja": "{{ documents }}",
}
IGNORED = (
    ".DS_Store",
    "._tokenizer.json",
    ".cache/huggingface/download/config.json.metadata",
    "README.md",
    "original/tokenizer.model",
    "checkpoint-9/model.safetensors",
    "pytorch_model.bin",
    "tokenizer_config.json.bak",
)


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_the_digest_counts_what_changes_texts(tmp_path):
    folder = write_files(tmp_path / "model", COUNTED)
    found = huggingface.digest(folder)
    assert huggingface.digest(write_files(tmp_path / "copy", COUNTED)) == found
    write_files(folder, dict.fromkeys(IGNORED, "x"))
    assert huggingface.digest(folder) == found
    seen = {found}
    for name, content in COUNTED.items():
        (folder / name).write_text(content + " ")
        seen.add(huggingface.digest(folder))
        (folder / name).unlink()
        seen.add(huggingface.digest(folder))
        (folder / name).write_text(content)
    assert len(seen) == 1 + 2 * len(COUNTED)
    assert huggingface.digest(folder) == found
    with pytest.raises(InputError, match="no such folder"):
        huggingface.digest(tmp_path / "absent")


def test_the_digest_counts_all_parts_of_the_weights(tmp_path):
    parts = shards(tmp_path / "model")
    seen = {huggingface.digest(tmp_path / "model")}
    for part in parts:
        content = part.read_bytes()
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        seen.add(huggingface.digest(tmp_path / "model"))
        part.write_bytes(content)
    assert len(parts) > 2 and len(seen) == 1 + len(parts)


def test_digests_of_older_versions_are_recognised(tmp_path):
    folder = write_files(tmp_path / "model", {**COUNTED, "README.md": "x"})
    older, newer = digests.of_folder(folder), huggingface.digest(folder)
    assert older != newer
    assert all(huggingface.has_digest(folder, found) for found in (older, newer))
    (folder / "README.md").write_text("y")
    assert huggingface.has_digest(folder, newer)
    assert not huggingface.has_digest(folder, older)


CODE = """
import pathlib
pathlib.Path({path!r}).touch()
from transformers import PreTrainedTokenizerFast
class Own(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_code_in_a_folder_never_runs(tmp_path, place, monkeypatch):
    """Not even after a question, which nobody sees on a cluster."""
    folder = tmp_path / "model"
    corpus.write_tokenizer(folder)
    (folder / "own.py").write_text(CODE.format(path=str(tmp_path / "ran")))
    settings = {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    settings |= {"model_type": "own", "tokenizer_class": "Own"}
    (folder / place).write_text(json.dumps(settings))

    asked = []
    monkeypatch.setattr("builtins.input", lambda *a: asked.append(a) or "y")
    with contextlib.suppress(InputError):
        huggingface.load_tokenizer(folder)
    assert not asked and not (tmp_path / "ran").exists()


def test_all_templates_are_copied(tmp_path):
    source = write_files(tmp_path / "source", COUNTED)
    write_files(source, dict.fromkeys(IGNORED, "x"))
    folder = tmp_path / "new"
    config, params = read_config(GOLDEN / "llama"), loaded("llama")[1]
    huggingface.save(folder, config, params, source=source)
    for name, content in COUNTED.items():
        if name not in ("config.json", "model.safetensors"):
            assert (folder / name).read_text() == content
    assert not any((folder / name).exists() for name in IGNORED)


@pytest.mark.parametrize("known", [None, 1, [1, 2]])
def test_stop_tokens_are_added_to_a_copy(tmp_path, known):
    source, folder = tmp_path / "source", tmp_path / "new"
    settings = {"eos_token_id": known, "bos_token_id": 4, "max_length": 99}
    write_files(source, {"generation_config.json": json.dumps(settings)})
    config, params = read_config(GOLDEN / "llama"), loaded("llama")[1]
    huggingface.save(folder, config, params, source=source, stop_tokens=(1, 3))
    found = json.loads((folder / "generation_config.json").read_text())
    before = [] if known is None else np.ravel(known).tolist()
    assert sorted(found.pop("eos_token_id")) == sorted({*before, 1, 3})
    assert found == {"bos_token_id": 4, "max_length": 99}
    assert huggingface.stop_tokens(folder) == [*before, *sorted({1, 3} - {*before})]


def test_stop_tokens_that_are_known_change_nothing(tmp_path):
    config, params = read_config(GOLDEN / "llama"), loaded("llama")[1]
    for name, tokens in (("known", (1,)), ("new", (1, 3))):
        described = {**config, "eos_token_id": 1, "bos_token_id": 4}
        huggingface.save(tmp_path / name, described, params, stop_tokens=tokens)
        assert huggingface.stop_tokens(tmp_path / name) == list(tokens)
    assert not (tmp_path / "known" / "generation_config.json").exists()
    assert huggingface.load_generation_config(tmp_path / "new").bos_token_id == 4


def test_generation_config_falls_back_to_the_config():
    config = huggingface.load_generation_config(GOLDEN / "gemma2")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 1, 0)


ALONE = """
import socket, sys
sys.modules["torch"] = None
asked = []
def refuse(*args):
    asked.append(args)
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
from fsa.language import huggingface
huggingface.load(sys.argv[1])
huggingface.load_generation_config(sys.argv[1])
if len(sys.argv) > 2:
    huggingface.load_tokenizer(sys.argv[2])
assert not asked, asked
"""


@pytest.mark.slow
def test_neither_pytorch_nor_the_network_is_needed():
    folders = [GOLDEN / "llama", *([STORIES] if STORIES.is_dir() else [])]
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, folders)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
