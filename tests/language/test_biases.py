"""Biases that a language model lacks: added at zero, shifted by z, exported."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
from flax import traverse_util
from slow import slow_but
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fsa.errors import InputError
from fsa.inference.steerer import Steerer
from fsa.language import huggingface
from fsa.language.huggingface.architecture import (
    arguments,
    read_config,
    with_bias_fields,
)
from fsa.language.language_model import LanguageModel
from fsa.language.layers import MAPS
from fsa.language.token_table import PaddedTokens
from fsa.language.tokenization import Tokenization
from fsa.language.transformer import with_biases
from fsa.models.policy import Policy, response_log_probs, shifted
from fsa.models.reward import RewardModel

pytestmark = pytest.mark.usefixtures("quick_compile")

GOLDEN = pathlib.Path(__file__).parent / "golden"
ATTENTION = tuple(name for name in MAPS if name.startswith("attention/"))
OUTPUTS = ("attention/out", "mlp/down")
FILM = tuple((name, "scale + shift") for name in OUTPUTS)
# The modulations of `FILM` that configs of the family can express.
FILM_OF = {"llama": FILM, "llama_bias": FILM, "qwen3": FILM[:1], "gemma3": FILM[:1]}
USERS, D = 3, 2


@functools.cache
def loaded(name):
    return huggingface.load(GOLDEN / name)


def tokens(vocab_size, *shape):
    return np.random.default_rng(0).integers(0, vocab_size, shape).astype(np.int32)


def bias_of(variables, name):
    return variables["params"]["layers"][name.split("/")[0]][name.split("/")[1]]["bias"]


@functools.cache
def film(name, modulations=FILM):
    """(policy, its variables, the language model's); z changes the policy."""
    model, base = with_biases(*loaded(name), shifted(modulations))
    reward = RewardModel(hidden=4, latent_dim=D)
    policy = Policy(model, reward, modulations, normalize=True)
    shapes = jax.eval_shape(lambda: policy.init(jax.random.key(0), base, model.width))
    return policy, policies.noisy(shapes, 1), base


@functools.cache
def apply(model):
    return jax.jit(model.apply)


@functools.cache
def log_probs(model):
    """Compiled log-probs of responses, from the language model's variables."""
    return jax.jit(functools.partial(response_log_probs, model))


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        pytest.param("qwen2", marks=pytest.mark.slow),
        pytest.param("gemma3", marks=pytest.mark.slow),
    ],
)
def test_zero_biases_change_no_bit(name):
    model, variables = loaded(name)
    biased, zeros = with_biases(model, variables, OUTPUTS)
    assert set(biased.biases) == {*model.biases, *OUTPUTS}
    for path in OUTPUTS:
        bias = bias_of(zeros, path)
        assert bias.shape == (model.num_layers, model.width) and not bias.any()
    prompts = tokens(model.vocab_size, 2, 17)
    wanted, _ = apply(model)(variables, prompts)
    np.testing.assert_array_equal(apply(biased)(zeros, prompts)[0], wanted)
    moved = policies.noisy(zeros, 1)
    assert np.abs(apply(biased)(moved, prompts)[0] - wanted).max() > 0.1


def test_biases_that_are_there_stay():
    model, variables = loaded("qwen2")
    same = with_biases(model, variables, ["attention/query", "attention/value"])
    assert same[0] is model and same[1] is variables
    biased, found = with_biases(model, variables, MAPS)
    assert set(biased.biases) == set(MAPS)
    for name in model.biases:
        assert bias_of(found, name) is bias_of(variables, name)
    flat, before = map(traverse_util.flatten_dict, (found, variables))
    assert len(flat.keys() - before.keys()) == 4
    # With the shapes that init gives them.
    init = jax.eval_shape(biased.init, jax.random.key(0), tokens(5, 1, 1))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, init)
    with pytest.raises(ValueError, match="mlp/out"):
        with_biases(model, variables, ["mlp/out"])


def test_users_shift_biases_as_if_the_biases_were_theirs():
    """Lazily, strictly and at once, against models with the shifted biases."""
    policy, variables, base = film("llama", tuple((name, "shift") for name in MAPS))
    z = jax.random.normal(jax.random.key(2), (USERS, D))
    texts = tokens(policy.language_model.vocab_size, USERS, 2, 17)
    responses = PaddedTokens(texts, np.full((USERS, 2), 4), np.full((USERS, 2), 9))

    def lazy(z, responses):
        return policy.log_probs(policy.condition(variables, base, z), responses)

    found = jax.jit(jax.vmap(lazy))(z, responses)
    modulate = jax.jit(policy.hypernet.apply)
    for user in range(USERS):
        deltas = modulate(variables["params"]["hyper"], z[user])
        own = traverse_util.flatten_dict(base, sep="/")
        for name in MAPS:
            path = f"params/layers/{name}/bias"
            (shift,) = jax.tree.leaves(deltas[path])
            own[path] = shift.reshape(own[path].shape)
        own = traverse_util.unflatten_dict(own, sep="/")
        theirs = jax.tree.map(lambda x, user=user: x[user], responses)
        wanted = log_probs(policy.language_model)(own, theirs)
        np.testing.assert_allclose(found[user], wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.1


def steerer(name, modulations):
    policy, variables, base = film(name, modulations)
    one_word = Tokenizer(models.WordLevel({"word": 0}, "word"))
    tokenization = Tokenization(PreTrainedTokenizerFast(tokenizer_object=one_word))
    folder = str(GOLDEN / name)
    language = LanguageModel(policy.language_model, base, tokenization, folder)
    return Steerer(policy, variables, language, "mean", (16,))


@pytest.mark.parametrize("name", slow_but(("llama_bias",), FILM_OF))
def test_an_exported_policy_is_the_same_in_transformers(name, tmp_path):
    ours = steerer(name, FILM_OF[name])
    z = np.array([0.6, -0.8], np.float32)
    ours.export(z, tmp_path / "mine")
    config = read_config(tmp_path / "mine")
    assert config["attention_bias"]
    assert config.get("mlp_bias", False) == ("llama" in name)
    texts = tokens(ours.language.model.vocab_size, 2, 17)
    model, variables = huggingface.load(tmp_path / "mine")
    responses = PaddedTokens(texts, np.full(2, 3), np.full(2, 17))
    exported = log_probs(model)(variables, responses)

    @jax.jit
    def steered(z):
        conditioned = ours.policy.condition(ours.variables, ours.language.variables, z)
        return ours.policy.log_probs(conditioned, responses)

    np.testing.assert_allclose(steered(z), exported, rtol=1e-5)
    # z changes the model, and the biases that z does not shift are as before.
    plain = log_probs(ours.language.model)(ours.language.variables, responses)
    assert np.abs(exported - plain).max() > 0.1
    before = loaded(name)[1] if name == "llama_bias" else None
    for path in set(model.biases) - {path for path, _ in FILM_OF[name]}:
        kept = bias_of(before, path) if before else 0.0
        np.testing.assert_array_equal(bias_of(variables, path), kept)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, config["architectures"][0])
    theirs, report = kind.from_pretrained(
        tmp_path / "mine", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys"))
    with torch.no_grad():
        found = theirs(torch.from_numpy(texts.astype(np.int64))).logits.numpy()
    wanted, _ = apply(model)(variables, texts)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name, bias",
    [("qwen2", "attention/out"), ("qwen3", "mlp/down"), ("gemma2", "mlp/down")],
)
def test_biases_that_no_config_can_express_are_not_exported(name, bias, tmp_path):
    with pytest.raises(InputError, match=bias) as raised:
        steerer(name, FILM).export(np.zeros(D, np.float32), tmp_path / "mine")
    assert str(GOLDEN / name) in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_fields_of_biases():
    for name in ("llama", "qwen3", "gemma2", "gemma3"):
        config = read_config(GOLDEN / name)
        assert arguments(config)["biases"] == ()
        assert with_bias_fields(config, []) == config
        asked = with_bias_fields(config, ["attention/key"])
        assert arguments(asked)["biases"] == ATTENTION
    llama = read_config(GOLDEN / "llama")
    assert arguments(with_bias_fields(llama, MAPS))["biases"] == MAPS
    assert not llama["attention_bias"]  # what was given is left alone
    qwen2 = read_config(GOLDEN / "qwen2")
    assert with_bias_fields(qwen2, ["attention/value"]) == qwen2
