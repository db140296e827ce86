"""GGUF files written here, converted, and compared with what went in.

A file given in FSA_TEST_GGUF (SmolLM2-135M-Instruct) is converted too, with -m slow.
"""

import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import load_file

from fsa.errors import InputError
from fsa.language import huggingface
from fsa.language.generation import decoder, generate, left_pad
from fsa.language.huggingface import gguf

library = pytest.importorskip("gguf")

# No size is another's, but for the multiples of 32 that quantisation asks for.
WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 160, 4, 2, 24, 2
SPECIAL = ["<|end|>", "<|start|>", "<|stop|>", "<tool>"]
MERGES = ["h e", "Ġ t", "Ġt he", "1 2", "e r"]
TOKENS = [
    *SPECIAL,
    *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    *(merge.replace(" ", "") for merge in MERGES),
]
TYPES = [3, 3, 3, 4] + [1] * (len(TOKENS) - 4)
TEMPLATE = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": LAYERS,
    "llama.context_length": 77,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.key_length": HEAD_DIM,
    "llama.attention.value_length": HEAD_DIM,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.eot_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}
Type = library.GGMLQuantizationType
# Names and shapes of one layer: in the file, its type there, in the folder.
LAYER = {
    "attn_norm": (Type.F32, "input_layernorm", (WIDTH,)),
    "attn_q": (Type.Q4_1, "self_attn.q_proj", (HEADS * HEAD_DIM, WIDTH)),
    "attn_k": (Type.F16, "self_attn.k_proj", (KV_HEADS * HEAD_DIM, WIDTH)),
    "attn_v": (Type.Q8_0, "self_attn.v_proj", (KV_HEADS * HEAD_DIM, WIDTH)),
    "attn_output": (Type.Q4_1, "self_attn.o_proj", (WIDTH, HEADS * HEAD_DIM)),
    "ffn_norm": (Type.F32, "post_attention_layernorm", (WIDTH,)),
    "ffn_gate": (Type.BF16, "mlp.gate_proj", (INNER, WIDTH)),
    "ffn_up": (Type.F32, "mlp.up_proj", (INNER, WIDTH)),
    "ffn_down": (Type.Q8_0, "mlp.down_proj", (WIDTH, INNER)),
}


def layout(tied):
    found = {"token_embd": (Type.Q8_0, "model.embed_tokens", (len(TOKENS), WIDTH))}
    for i in range(LAYERS):
        for name, (kind, target, shape) in LAYER.items():
            found[f"blk.{i}.{name}"] = kind, f"model.layers.{i}.{target}", shape
    found["output_norm"] = Type.F32, "model.norm", (WIDTH,)
    if not tied:
        found["output"] = Type.F16, "lm_head", (len(TOKENS), WIDTH)
    return found


def interleaved(weights, num_heads):
    """Rows as llama.cpp keeps them: features i and i + F / 2 become neighbours."""
    heads = []
    for head in np.split(weights, num_heads):
        half = len(head) // 2
        heads += [x for i in range(half) for x in (head[i], head[half + i])]
    return np.stack(heads)


def write(path, *, tied=True, change=None, tensors=None):
    """Writes a file; returns the weights that the folder must hold.

    `change` replaces metadata (None leaves one out), `tensors` replaces weights.
    """
    writer = library.GGUFWriter(path, "llama")
    for key, value in {**METADATA, **(change or {})}.items():
        if value is None or key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            add = {int: "uint32", float: "float32", str: "string"}[type(value)]
            getattr(writer, f"add_{add}")(key, value)
    if change and "general.architecture" in change:
        value = library.GGUFValue(change["general.architecture"], 8)
        writer.kv_data[0]["general.architecture"] = value
    rng = np.random.default_rng(0)
    expected = {}
    for name, (kind, target, shape) in layout(tied).items():
        weights = rng.normal(size=shape).astype(np.float32)
        stored = library.quantize(weights, kind)
        # Rows are quantised one by one, so that they may be reordered afterwards.
        expected[f"{target}.weight"] = library.dequantize(stored, kind)
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.rpartition(".")[2])
        if heads:
            stored = interleaved(stored, heads)
        if f"{name}.weight" in (tensors or {}):
            stored, kind = tensors[f"{name}.weight"], None
        if stored is not None:
            writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
    for name in set(tensors or ()) - {f"{name}.weight" for name in layout(tied)}:
        writer.add_tensor(name, tensors[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def converted(tmp_path, *, dtype="float32", **options):
    """A converted folder and what it must hold."""
    expected = write(tmp_path / "model.gguf", **options)
    gguf.convert(tmp_path / "model.gguf", tmp_path / "out", dtype=dtype)
    return tmp_path / "out", expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", gguf.DTYPES)
def test_weights_are_those_of_the_file(tmp_path, tied, dtype):
    folder, expected = converted(tmp_path, tied=tied, dtype=dtype)
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert found[name].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(found[name], weights.astype(dtype), name)


def test_rotary_halves_keeps_the_scores_of_attention():
    """Each layout under its own rotation gives the same products q k."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, HEADS * HEAD_DIM, WIDTH))
    inputs = rng.normal(size=(2, WIDTH))
    positions = np.array([3, 11])
    half = HEAD_DIM // 2
    angles = positions[:, None] / 5000.0 ** (np.arange(half) / half)  # [2, F / 2]

    def scores(weights, features):
        projected = np.einsum("nhd,nd->nh", weights, inputs)
        heads = projected.reshape(2, HEADS, HEAD_DIM)[..., features]  # [2, H, F/2, 2]
        turned = (heads[..., 0] + 1j * heads[..., 1]) * np.exp(1j * angles)[:, None]
        query, key = turned
        return np.real(np.sum(query * key.conj(), axis=-1))

    ours = np.stack([gguf.rotary_halves(w, HEADS) for w in weights])
    neighbours = np.arange(HEAD_DIM).reshape(half, 2)
    halves = neighbours.reshape(2, half).T
    np.testing.assert_allclose(scores(ours, halves), scores(weights, neighbours))


@pytest.mark.parametrize("tied", [True, False])
def test_config(tmp_path, tied):
    folder, _ = converted(tmp_path, tied=tied, dtype="bfloat16")
    config = json.loads((folder / "config.json").read_text())
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(TOKENS),
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 77,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": [0, 2],
        "torch_dtype": "bfloat16",
    }
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2]}


def test_defaults_of_optional_metadata(tmp_path):
    """Keys that old files leave out: as many key heads as heads, base 10000."""
    change = dict.fromkeys(
        ["llama.rope.freq_base", "tokenizer.ggml.eot_token_id", "llama.vocab_size"]
    )
    folder, _ = converted(tmp_path, change=change)
    config = json.loads((folder / "config.json").read_text())
    assert (config["rope_theta"], config["eos_token_id"]) == (10000.0, 0)


def pieces(folder, text):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer.encode(text).tokens


def test_tokenizer_merges_and_splits_digits_singly(tmp_path):
    folder, _ = converted(tmp_path)
    assert pieces(folder, "other 12 the<|start|>12") == (
        ["o", "t", "he", "r", "Ġ", "1", "2", "Ġthe", "<|start|>", "1", "2"]
    )


def test_tokenizer_of_gpt2_keeps_digits_together(tmp_path):
    folder, _ = converted(tmp_path, change={"tokenizer.ggml.pre": "gpt-2"})
    assert pieces(folder, "the 12") == ["t", "he", "Ġ", "12"]


def test_tokenizer_round_trips_and_knows_special_from_added_tokens(tmp_path):
    folder, _ = converted(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "naïve  猫\n\t the 12€ <tool><|end|>"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == text.removesuffix("<|end|>")
    assert ids[-2:] == [3, 0]


@pytest.mark.parametrize(
    ("around", "first", "last"),
    [((True, False), [1], []), ((True, True), [1], [0]), ((False, True), [], [0])],
)
def test_tokenizer_adds_the_ends_that_the_file_asks_for(tmp_path, around, first, last):
    change = {
        f"tokenizer.ggml.add_{name}_token": asked
        for name, asked in zip(("bos", "eos"), around, strict=True)
    }
    folder, _ = converted(tmp_path, change=change)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = tokenizer.encode("the", add_special_tokens=False).ids
    assert tokenizer.encode("the").ids == [*first, *plain, *last]


def test_transformers_reads_the_tokenizer(tmp_path):
    folder, _ = converted(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"content": "the 12"}], tokenize=False)
    assert text == "<|start|>the 12<|end|>"
    assert tokenizer.tokenize(text) == pieces(folder, text)
    assert (tokenizer.bos_token, tokenizer.eos_token_id) == ("<|start|>", 0)


def test_the_end_of_the_template_stops_texts(tmp_path):
    """Beside those that the metadata name."""
    template = TEMPLATE.replace("<|end|>", "<tool>")
    folder, _ = converted(tmp_path, change={"tokenizer.chat_template": template})
    assert sorted(huggingface.stop_tokens(folder)) == [0, 2, 3]
    (tmp_path / "plain").mkdir()
    folder, _ = converted(tmp_path / "plain")
    assert sorted(huggingface.stop_tokens(folder)) == [0, 2]


def test_several_templates_are_kept(tmp_path):
    folder, _ = converted(tmp_path, change={"tokenizer.chat_template.rag": "{{ 1 }}"})
    tokenizer = huggingface.load_tokenizer(folder)
    assert tokenizer.chat_template == {"default": TEMPLATE, "rag": "{{ 1 }}"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "rwkv6"}, "architecture"),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type"),
        ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv"),
        ({"llama.rope.dimension_count": 12}, "llama.rope.dimension_count"),
        ({"llama.context_length": None}, "llama.context_length"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model"),
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre"),
        ({"tokenizer.ggml.merges": ["q x"]}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["t h e"]}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.tokens": ["a"] * len(TOKENS)}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.eos_token_id": 999}, "eos_token_id = 999"),
        ({"tokenizer.ggml.bos_token_id": 999}, "bos_token_id = 999"),
        (
            {"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.eot_token_id": None},
            "tokenizer.ggml.eos_token_id",
        ),
        ({"llama.feed_forward_length": 32}, "blk.0.ffn_gate.weight"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=f"model.gguf: .*{message}.*; [a-z]"):
        converted(tmp_path, change=change)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"rope_freqs.weight": np.ones(3, np.float32)}, "rope_freqs.weight"),
        ({"blk.1.ffn_up.weight": None}, "blk.1.ffn_up.weight"),
        (
            {"blk.1.ffn_norm.weight": np.ones(7, np.float32)},
            "blk.1.ffn_norm.weight",
        ),
        (
            {"blk.1.ffn_norm.weight": np.ones(WIDTH, np.int8)},
            "blk.1.ffn_norm.weight .* I8",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, tensors, message):
    with pytest.raises(InputError, match=f"model.gguf: .*{message}.*; [a-z]"):
        converted(tmp_path, tensors=tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("size", [0, 3, 100, -100])
def test_damaged_files_are_refused(tmp_path, size):
    path = tmp_path / "model.gguf"
    write(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="model.gguf"):
        gguf.convert(path, tmp_path / "out")


def test_the_extra_is_asked_for(tmp_path, monkeypatch):
    write(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"'\.\[gguf\]'"):
        gguf.convert(tmp_path / "model.gguf", tmp_path / "out")


def test_the_command_line(tmp_path, launch):
    write(tmp_path / "model.gguf")
    arguments = f"--gguf={tmp_path / 'model.gguf'}", f"--out={tmp_path / 'out'}"
    finished = launch("prepare", *arguments)
    assert (finished.code, finished.err) == (0, "")
    assert (
        finished.out == f"Made {tmp_path / 'out'}, a Hugging Face folder in bfloat16\n"
    )
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["model.norm.weight"].dtype == jnp.bfloat16
    for extra, message in [
        ([], f"error: {tmp_path / 'out'}: "),
        (["--choices=a.csv"], "error: --gguf"),
        (["--gguf=none", f"--out={tmp_path / 'new'}"], "error: none: "),
    ]:
        finished = launch("prepare", *arguments, *extra)
        assert finished.code == 2
        assert finished.err.startswith(message)


@pytest.mark.slow
def test_the_real_model_answers(tmp_path):
    """Greedily, in transformers and here: what it says when run by llama.cpp."""
    path = os.environ.get("FSA_TEST_GGUF")
    if not path or not pathlib.Path(path).is_file():
        pytest.skip("FSA_TEST_GGUF names no file of SmolLM2-135M-Instruct")
    torch = pytest.importorskip("torch")
    gguf.convert(path, tmp_path / "out")
    tokenizer = huggingface.load_tokenizer(tmp_path / "out")
    text = "In 2024 it's naïve:  1,234.56€\n\t猫"
    assert tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.decode(tokenizer(text).input_ids) == text

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    question = "What is the capital of France? Answer briefly."
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = "The capital of France is Paris.<|im_end|>"
    said = theirs.generate(**prompt, do_sample=False, max_new_tokens=20)[0]
    assert tokenizer.decode(said[prompt["input_ids"].shape[1] :]) == answer

    ours, variables = huggingface.load(tmp_path / "out", jnp.float32)
    tokens, mask = left_pad(prompt["input_ids"].tolist(), length=64)
    found = generate(
        decoder(ours, variables),
        tokens,
        mask,
        jax.random.key(0),
        max_new_tokens=20,
        temperature=0,
        stop_tokens=[tokenizer.eos_token_id],
    )
    assert tokenizer.decode(found.tokens[found.mask]) == answer
    _check_rounding(theirs, ours, variables, prompt)


def _check_rounding(theirs, ours, variables, prompt):
    """Float32 logits of both against float64: no more than rounding, ours like theirs.

    Logits reach 38. Where this was measured both were 1e-4 off at most, nearly all of
    it from the order in which the linear maps add up their products: those alone gave
    8e-5, and 8e-6 when summed in float64 and then rounded.
    """
    single = theirs.float()(**prompt).logits.detach().numpy()
    exact = theirs.double()(**prompt).logits.detach().numpy()
    logits, _ = ours.apply(variables, jnp.asarray(prompt["input_ids"].numpy()))
    error_of_theirs, error_of_ours = single - exact, logits - exact
    assert np.abs(error_of_ours).max() < 2e-4
    assert np.std(error_of_ours) < 2 * np.std(error_of_theirs)
