"""Biases that a language model lacks: given at zero, shifted by z, exported."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

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
from fsa.language.token_table import Padded
from fsa.language.transformer import with_biases
from fsa.models.policy import Policy, response_log_probs, shifted
from fsa.models.reward import RewardModel

pytestmark = pytest.mark.usefixtures("quick_compile")

GOLDEN = pathlib.Path(__file__).parent / "golden"
ATTENTION = tuple(name for name in MAPS if name.startswith("attention/"))
OUTPUTS = ("attention/out", "mlp/down")
FILM = tuple((name, "scale + shift") for name in OUTPUTS)
# Those of `FILM` that configs of the family can express.
FILM_OF = {"llama": FILM, "llama_bias": FILM, "qwen3": FILM[:1], "gemma3": FILM[:1]}
USERS, D = 3, 2


@functools.cache
def loaded(name):
    return huggingface.load(GOLDEN / name)


def tokens(vocab_size, *shape):
    return np.random.default_rng(0).integers(0, vocab_size, shape).astype(np.int32)


def bias_of(variables, name):
    return variables["params"]["layers"][name.split("/")[0]][name.split("/")[1]]["bias"]


def moved(tree):
    """Away from the start, at which z does nothing."""
    leaves, treedef = jax.tree.flatten(tree)
    rng = np.random.default_rng(1)
    noisy = [x + 0.3 * rng.standard_normal(x.shape).astype(x.dtype) for x in leaves]
    return jax.tree.unflatten(treedef, noisy)


@functools.cache
def film(name, modulations=FILM):
    """(policy, its variables, the language model's) with a moved hypernetwork."""
    model, base = with_biases(*loaded(name), shifted(modulations))
    reward = RewardModel(hidden=4, latent_dim=D)
    policy = Policy(model, reward, modulations, normalize=True)
    variables = policy.init(jax.random.key(0), base, model.width)
    variables["params"]["hyper"] = moved(variables["params"]["hyper"])
    return policy, variables, base


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_zero_biases_change_no_bit(name):
    model, variables = loaded(name)
    biased, zeros = with_biases(model, variables, OUTPUTS)
    assert set(biased.biases) == {*model.biases, *OUTPUTS}
    for path in OUTPUTS:
        bias = bias_of(zeros, path)
        assert bias.shape == (model.num_layers, model.width) and not bias.any()
    row = tokens(model.vocab_size, 2, 9)
    wanted, _ = jax.jit(model.apply)(variables, row)
    np.testing.assert_array_equal(jax.jit(biased.apply)(zeros, row)[0], wanted)
    assert np.abs(jax.jit(biased.apply)(moved(zeros), row)[0] - wanted).max() > 0.1


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
    # In the dtype and order of axes of what init makes.
    init = jax.eval_shape(biased.init, jax.random.key(0), tokens(5, 1, 1))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, init)
    with pytest.raises(ValueError, match="'mlp/out' is none of"):
        with_biases(model, variables, ["mlp/out"])


def test_users_shift_biases_as_if_the_biases_were_theirs():
    """Lazily, strictly and at once, against one model a user with written-in biases."""
    policy, variables, base = film("llama", tuple((name, "shift") for name in MAPS))
    z = jax.random.normal(jax.random.key(2), (USERS, D))
    rows = tokens(policy.language_model.vocab_size, USERS, 2, 9)
    responses = Padded(rows, np.full((USERS, 2), 4), np.full((USERS, 2), 9))

    def lazy(z, responses):
        return policy.log_probs(policy.condition(variables, base, z), responses)

    found = jax.jit(jax.vmap(lazy))(z, responses)
    for user in range(USERS):
        deltas = policy.hypernet.apply(variables["params"]["hyper"], z[user])
        own = traverse_util.flatten_dict(base, sep="/")
        for name in MAPS:
            path = f"params/layers/{name}/bias"
            (shift,) = jax.tree.leaves(deltas[path])
            own[path] = shift.reshape(own[path].shape)
        own = traverse_util.unflatten_dict(own, sep="/")
        row = jax.tree.map(lambda x, user=user: x[user], responses)
        wanted = response_log_probs(policy.language_model, own, row)
        np.testing.assert_allclose(found[user], wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.1


def steerer(name, modulations):
    policy, variables, base = film(name, modulations)
    language = LanguageModel(policy.language_model, base, None, str(GOLDEN / name))
    return Steerer(policy, variables, language, "mean", (16,))


@pytest.mark.parametrize("name", FILM_OF)
def test_an_exported_policy_is_the_same_in_transformers(name, tmp_path):
    ours = steerer(name, FILM_OF[name])
    z = np.array([0.6, -0.8], np.float32)
    ours.export(z, tmp_path / "mine")
    config = read_config(tmp_path / "mine")
    assert config["attention_bias"]
    assert config.get("mlp_bias", False) == ("llama" in name)
    rows = tokens(ours.language.model.vocab_size, 2, 17)
    model, variables = huggingface.load(tmp_path / "mine")
    wanted, _ = jax.jit(model.apply)(variables, rows)
    # Steered, not as it was; and the biases that z leaves are as they were.
    plain, _ = jax.jit(loaded(name)[0].apply)(loaded(name)[1], rows)
    assert np.abs(wanted - plain).max() > 0.1
    before = loaded(name)[1] if name == "llama_bias" else None
    for path in set(model.biases) - {path for path, _ in FILM_OF[name]}:
        kept = bias_of(before, path) if before else 0.0
        np.testing.assert_array_equal(bias_of(variables, path), kept)
    table = Padded(rows, np.full(2, 3), np.full(2, 17))
    conditioned = ours.policy.condition(ours.variables, ours.language.variables, z)
    np.testing.assert_allclose(
        ours.policy.log_probs(conditioned, table),
        response_log_probs(model, variables, table),
        rtol=1e-5,
    )
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, config["architectures"][0])
    theirs, report = kind.from_pretrained(
        tmp_path / "mine", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys"))
    with torch.no_grad():
        found = theirs(torch.from_numpy(rows.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name, message",
    [
        ("qwen2", "Qwen2ForCausalLM has no bias on attention/out"),
        ("qwen3", "Qwen3ForCausalLM has no bias on mlp/down"),
        ("gemma2", "Gemma2ForCausalLM has no bias on mlp/down"),
    ],
)
def test_what_no_config_can_say_is_not_exported(name, message, tmp_path):
    with pytest.raises(InputError, match=message) as raised:
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
