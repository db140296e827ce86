"""Decoding with a cache against whole sequences at once, sampling against NumPy."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from fsa.conditioning import condition, fold, hypernet, low_rank, scale, user_axes
from fsa.errors import InputError
from fsa.language import generation as g
from fsa.language import huggingface
from fsa.language.transformer import Transformer

pytestmark = pytest.mark.usefixtures("quick_compile")

STORIES = pathlib.Path(__file__).resolve().parents[3] / "shared/data/stories260K"
VOCAB, LATENT = 31, 3
SIZES = dict(
    vocab_size=VOCAB,
    width=20,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=28,
)
MODELS = {
    "llama": Transformer(**SIZES),
    "windows": Transformer(
        **SIZES,
        windows=(2, None, 3),
        local_rope_theta=100.0,
        attention_soft_cap=5.0,
        final_soft_cap=3.0,
        post_norms=True,
        qk_norm=True,
        tied=True,
        embedding_scale=4.0,
    ),
}
SPEC = [
    (
        "params/layers/attention/out/kernel",
        (scale() + low_rank(2)).layout(-1, (1, 2), stacked=True),
    ),
    ("params/layers/mlp/down/kernel", (scale() + low_rank(2)).layout(stacked=True)),
    ("params/layers/attention/query/kernel", scale().layout((2, 3), stacked=True)),
    ("params/final_norm/scale", scale()),
]
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5, 8, 9]]
INIT, MODULATE = hypernet(SPEC, LATENT)


def noisy(tree, seed, size):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + size * rng.normal(size=x.shape).astype("f4"), tree
    )


@functools.cache
def parts(name):
    """(model, variables, hyper, latents of as many users as prompts)."""
    model = MODELS[name]
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    variables = noisy(variables, 1, 0.3)
    hyper = noisy(INIT(jax.random.key(1), variables), 2, 0.3)
    z = jax.random.normal(jax.random.key(2), (len(PROMPTS), LATENT))
    return model, variables, hyper, z


def users_of(name, rows=slice(None)):
    model, variables, hyper, z = parts(name)
    axes = user_axes(hyper)
    modulations = jax.vmap(MODULATE, (None, 0), axes)(hyper, z[rows])
    return g.user_decoder(model, variables, modulations, axes)


def folded(name, user):
    """The parameters of one user, plain arrays."""
    _, variables, hyper, z = parts(name)
    return fold(condition(variables, MODULATE(hyper, z[user])))


@functools.cache
def apply(name):
    return jax.jit(MODELS[name].apply)


def uncached(name, user, tokens, length=16):
    """Logits `[T, V]` of one sequence under one user's folded parameters."""
    padded, mask = np.zeros((1, length), np.int32), np.zeros((1, length), bool)
    padded[0, : len(tokens)], mask[0, : len(tokens)] = tokens, True
    logits, _ = apply(name)(folded(name, user), padded, mask=mask)
    return np.asarray(logits)[0, : len(tokens)]


def run(decoder, prompts, key=0, **options):
    tokens, mask = g.left_pad(prompts, length=options.pop("length", None))
    options = {"max_new_tokens": 6, **options}
    made = jax.jit(lambda *xs: g.generate(decoder, *xs, jax.random.key(key), **options))
    return jax.tree.map(np.asarray, made(tokens, mask))


@pytest.mark.parametrize("name", MODELS)
def test_cached_logits_equal_uncached_at_every_position(name):
    """Mixed users behind left padding, against each one's own folded model alone."""
    decoder = users_of(name)
    tokens, mask = g.left_pad(PROMPTS, length=7)
    following = np.random.default_rng(0).integers(VOCAB, size=(len(PROMPTS), 9))
    step = jax.jit(decoder.step)
    logits, cache = step(tokens, mask, decoder.init_cache(len(PROMPTS), 7 + 9))
    found = [logits]
    for i in range(9):
        column = following[:, i, None]
        logits, cache = step(column, np.ones_like(column, bool), cache)
        found.append(logits)
    for row, prompt in enumerate(PROMPTS):
        expected = uncached(name, row, [*prompt, *following[row]])
        np.testing.assert_allclose(
            np.stack(found, 1)[row], expected[len(prompt) - 1 :], atol=1e-4
        )


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_of_mixed_users_is_that_of_each_alone(name):
    found = run(users_of(name), PROMPTS, temperature=0)
    assert found.mask.all()
    for row, prompt in enumerate(PROMPTS):
        logits = uncached(name, row, [*prompt, *found.tokens[row]])
        best = logits.argmax(axis=-1)[len(prompt) - 1 : -1]
        assert found.tokens[row].tolist() == best.tolist()


def test_users_get_texts_of_their_own():
    texts = run(users_of("llama"), [[3, 1, 4]] * 4, temperature=0).tokens
    assert len({tuple(text) for text in texts}) == 4


def test_one_user_and_none_are_the_same_code():
    model, variables, hyper, z = parts("llama")
    same = users_of("llama", np.array([2, 2, 2, 2]))
    one = g.decoder(model, condition(variables, MODULATE(hyper, z[2])))
    for decoder in (one, g.decoder(model, folded("llama", 2))):
        found, expected = run(decoder, PROMPTS), run(same, PROMPTS)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
    fresh = INIT(jax.random.key(1), variables)
    axes = user_axes(fresh)
    modulations = jax.vmap(MODULATE, (None, 0), axes)(fresh, z)
    found = run(g.user_decoder(model, variables, modulations, axes), PROMPTS)
    expected = run(g.decoder(model, variables), PROMPTS)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_no_row_depends_on_the_others():
    whole = run(users_of("llama"), PROMPTS)
    rows = np.array([3, 1])
    part = run(users_of("llama", rows), [PROMPTS[i] for i in rows], example_ids=rows)
    np.testing.assert_array_equal(part.tokens, whole.tokens[rows])


def test_rows_and_keys_draw_apart():
    model, variables, *_ = parts("llama")
    decoder = g.decoder(model, variables)
    found = run(decoder, [[3, 1]] * 8, temperature=3.0).tokens
    assert len({tuple(row) for row in found}) == 8
    again = run(decoder, [[3, 1]] * 8, temperature=3.0).tokens
    np.testing.assert_array_equal(found, again)
    other = run(decoder, [[3, 1]] * 8, key=1, temperature=3.0).tokens
    assert (found != other).any(axis=1).all()


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name):
    found = run(users_of(name), PROMPTS, length=11)
    np.testing.assert_array_equal(found.tokens, run(users_of(name), PROMPTS).tokens)


def scripted(script):
    """A decoder that says `script` `[B, steps]`, and a list that its steps go to."""
    script, steps = jnp.asarray(script), []

    def step(tokens, mask, count):
        jax.debug.callback(lambda *xs: steps.append(xs), tokens, mask, ordered=True)
        return jax.nn.one_hot(script[:, count], 10), count + 1

    return g.Decoder(lambda batch, slots: jnp.zeros((), jnp.int32), step), steps


def test_stop_tokens_end_rows_and_the_last_one_ends_the_loop():
    decoder, steps = scripted(
        [[4, 7, 1, 1, 1, 1], [7, 1, 1, 1, 1, 1], [1, 2, 3, 8, 1, 1]]
    )
    found = run(
        decoder, [[5], [5], [5]], temperature=0, stop_tokens=(7, 8), pad_token=9
    )
    jax.effects_barrier()
    assert found.tokens.tolist() == [
        [4, 7, 9, 9, 9, 9],
        [7, 9, 9, 9, 9, 9],
        [1, 2, 3, 8, 9, 9],
    ]
    assert found.mask.sum(axis=1).tolist() == [2, 1, 4]
    assert (found.mask == (found.tokens != 9)).all()
    # The prefill and three tokens more; of six, none is fed after the last stop.
    fed = [(tokens[:, -1].tolist(), mask[:, -1].tolist()) for tokens, mask in steps]
    assert fed == [
        ([5, 5, 5], [True, True, True]),
        ([4, 7, 1], [True, False, True]),
        ([7, 9, 2], [False, False, True]),
        ([9, 9, 3], [False, False, True]),
    ]


def test_without_a_stop_token_all_tokens_are_generated():
    decoder, steps = scripted([[4, 7, 1, 1, 1, 1]])
    found = run(decoder, [[5]], temperature=0)
    jax.effects_barrier()
    assert found.tokens.tolist() == [[4, 7, 1, 1, 1, 1]]
    assert found.mask.all()
    assert len(steps) == 6


def expected_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """In float64, token by token, from the most to the least probable."""
    p = np.exp(np.asarray(logits, np.float64) / temperature)
    order = np.argsort(-p)[:top_k]
    kept, total, whole = [], 0.0, p[order].sum()
    for token in order:
        kept.append(token)
        total += p[token] / whole
        if top_p is not None and total >= top_p:
            break
    found = np.zeros_like(p)
    found[kept] = p[kept] / p[kept].sum()
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_k": 1},
        {"top_k": 99},
        {"top_p": 0.7},
        {"top_p": 1e-6},
        {"top_p": 1.0},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.8},
    ],
)
def test_draws_follow_the_distribution(options):
    draws = 40_000
    logits = jnp.array([0.3, -1.0, 2.0, 1.1, 0.0, -2.5, 1.6])
    keys = jax.random.split(jax.random.key(0), draws)
    draw = jax.vmap(lambda key: g.sample(key, logits, **options))
    counts = np.bincount(jax.jit(draw)(keys), minlength=len(logits))
    p = expected_probabilities(logits, **options)
    assert (counts[p == 0] == 0).all()
    spread = np.sqrt(draws * p * (1 - p)) + 1e-9
    assert (np.abs(counts - draws * p) / spread).max() < 4.5


def test_temperature_zero_takes_the_first_of_the_best():
    logits = jnp.array([1.0, 3.0, 3.0, 2.0])
    assert g.sample(jax.random.key(0), logits, temperature=0, top_k=3, top_p=0.5) == 1


def test_left_pad():
    tokens, mask = g.left_pad([[3, 4], [5]], pad_token=9, length=4)
    assert tokens.tolist() == [[9, 9, 3, 4], [9, 9, 9, 5]]
    assert mask.tolist() == [[False, False, True, True], [False, False, False, True]]
    assert g.left_pad([[3, 4], [5]])[0].tolist() == [[3, 4], [0, 5]]
    with pytest.raises(InputError, match="prompt 0: has 0 tokens; give 1 to 1"):
        g.left_pad([[]])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts: there are none"),
        ([[1], []], "prompt 1: has 0 tokens; give 1 to 3"),
        ([[1, 2, 3, 4]], "prompt 0: has 4 tokens; give 1 to 3"),
    ],
)
def test_prompts_that_cannot_be_padded(prompts, message):
    with pytest.raises(InputError, match=message):
        g.left_pad(prompts, length=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_options_out_of_range(options, message):
    decoder, steps = scripted([[1]])
    with pytest.raises(InputError, match=message):
        run(decoder, [[5]], **options)
    with pytest.raises(InputError, match=r"prompts have shape \(1,\), mask \(1, 1\)"):
        one = np.ones((1, 1), np.int32)
        g.generate(decoder, one[0], one, jax.random.key(0), max_new_tokens=1)
    assert not steps


def test_greedy_text_is_that_of_transformers(tmp_path):
    """A Llama with random weights, prompts of several lengths padded on the left."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=20,
        intermediate_size=28,
        num_hidden_layers=3,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=4,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens, mask = g.left_pad(PROMPTS)
    expected = theirs.generate(
        torch.tensor(tokens).long(),
        attention_mask=torch.tensor(mask).long(),
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
    )
    model, variables = huggingface.load(tmp_path)
    found = run(g.decoder(model, variables), PROMPTS, temperature=0, max_new_tokens=20)
    np.testing.assert_array_equal(found.tokens, expected[:, tokens.shape[1] :])


def test_greedy_text_of_stories():
    """40 tokens of each prompt, which transformers and a float64 forward pass gave."""
    if not STORIES.is_dir():
        pytest.skip("../shared/data/stories260K is not there")
    cases = json.loads((STORIES / "golden.json").read_text())["cases"]
    model, variables = huggingface.load(STORIES)
    found = run(
        g.decoder(model, variables),
        [case["input_ids"] for case in cases],
        temperature=0,
        max_new_tokens=40,
    )
    assert found.tokens.tolist() == [case["greedy_tokens"] for case in cases]
