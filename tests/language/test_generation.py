"""Decoding with a cache against complete sequences, sampling against NumPy."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
import transformers
from random_variables import random_variables
from slow import slow_but

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
NAMES = slow_but(("llama",), MODELS)
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


@functools.cache
def parts(name):
    """(model, variables, hyper, latents of as many users as prompts)."""
    model = MODELS[name]
    variables = random_variables(model)
    shapes = jax.eval_shape(lambda: INIT(jax.random.key(1), variables))
    hyper = policies.noisy(shapes, 2)
    z = jax.random.normal(jax.random.key(2), (len(PROMPTS), LATENT))
    return model, variables, hyper, z


@functools.cache
def program(name, **options):
    """Compiled `write` of a model: parameters are arguments, so that tests share it."""
    return jax.jit(functools.partial(write, MODELS[name], options))


def write(model, options, variables, hyper, z, tokens, mask, key, ids):
    if hyper is None:
        decoder = g.decoder(model, variables)
    else:
        decoder = users_of(model, variables, hyper, z)
    return g.generate(decoder, tokens, mask, key, example_ids=ids, **options)


def users_of(model, variables, hyper, z):
    axes = user_axes(hyper)
    modulations = jax.vmap(MODULATE, (None, 0), axes)(hyper, z)
    return g.user_decoder(model, variables, modulations, axes)


def generated(
    name, prompts=PROMPTS, *, variables=None, hyper=None, z=None, key=0, **options
):
    """What four users get, or what given variables give without users."""
    options = {"max_new_tokens": 6, "temperature": 1.0, **options}
    tokens, mask = g.left_pad(prompts, length=options.pop("length", 5))
    ids = np.asarray(options.pop("ids", range(len(prompts))), np.int32)
    _, own, own_hyper, own_z = parts(name)
    if variables is None:
        variables, hyper = own, own_hyper if hyper is None else hyper
        z = own_z if z is None else z
    run = program(name, **options)
    found = run(variables, hyper, z, tokens, mask, jax.random.key(key), ids)
    return jax.tree.map(np.asarray, found)


@functools.cache
def folding(name):
    """Compiled: parameters of users, plain arrays stacked over users."""

    def folded(variables, hyper, z):
        return fold(condition(variables, MODULATE(hyper, z)))

    return jax.jit(jax.vmap(folded, (None, None, 0)))


def uncached(name, tokens):
    """Logits of each user's sequence under its own folded parameters, `[T, V]` each."""
    model, *own = parts(name)
    padded, mask = g.left_pad(tokens, length=14)
    logits = uncached_program(name)(folding(name)(*own), padded, mask)
    return [np.asarray(x)[-len(t) :] for x, t in zip(logits, tokens, strict=True)]


@functools.cache
def uncached_program(name):
    def one(variables, tokens, mask):
        return MODELS[name].apply(variables, tokens[None], mask=mask[None])[0][0]

    return jax.jit(jax.vmap(one))


def run(decoder, prompts, **options):
    tokens, mask = g.left_pad(prompts, length=options.pop("length", None))
    options = {"max_new_tokens": 6, **options}
    made = jax.jit(lambda *xs: g.generate(decoder, *xs, jax.random.key(0), **options))
    return jax.tree.map(np.asarray, made(tokens, mask))


@pytest.mark.parametrize("name", NAMES)
def test_cached_logits_equal_uncached_at_every_position(name):
    """Mixed users behind left padding, against each one's own folded model alone."""
    model, *own = parts(name)
    tokens, mask = g.left_pad(PROMPTS, length=7)
    following = np.random.default_rng(0).integers(VOCAB, size=(len(PROMPTS), 9))

    @jax.jit
    def step(own, tokens, mask, cache):
        return users_of(model, *own).step(tokens, mask, cache)

    empty = g.user_decoder(model, None, None, None).init_cache(len(PROMPTS), 7 + 9)
    logits, cache = step(own, tokens, mask, empty)
    found = [logits]
    for i in range(9):
        column = following[:, i, None]
        logits, cache = step(own, column, np.ones_like(column, bool), cache)
        found.append(logits)
    texts = [[*p, *f] for p, f in zip(PROMPTS, following, strict=True)]
    for user, expected in enumerate(uncached(name, texts)):
        np.testing.assert_allclose(
            np.stack(found, 1)[user], expected[len(PROMPTS[user]) - 1 :], atol=1e-4
        )


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_of_mixed_users_is_that_of_each_alone(name):
    found = generated(name, temperature=0)
    assert found.mask.all()
    texts = [[*p, *t] for p, t in zip(PROMPTS, found.tokens, strict=True)]
    for user, logits in enumerate(uncached(name, texts)):
        best = logits.argmax(axis=-1)[len(PROMPTS[user]) - 1 : -1]
        assert found.tokens[user].tolist() == best.tolist()


def test_users_get_texts_of_their_own():
    texts = generated("llama", [[3, 1, 4]] * 4, temperature=0).tokens
    assert len({tuple(text) for text in texts}) == 4


@pytest.mark.slow
def test_one_user_and_none_are_the_same_code():
    model, variables, hyper, z = parts("llama")
    expected = generated("llama", z=z[np.array([2, 2, 2, 2])])
    one = jax.jit(lambda *own: condition(own[0], MODULATE(*own[1:])))
    folded = jax.tree.map(lambda x: x[2], folding("llama")(variables, hyper, z))
    for own in (one(variables, hyper, z[2]), folded):
        found = generated("llama", variables=own)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
    # At the start of training z changes nothing.
    fresh = jax.jit(INIT)(jax.random.key(1), variables)
    found = generated("llama", hyper=fresh)
    expected = generated("llama", variables=variables)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


@pytest.mark.slow
def test_no_example_depends_on_the_others():
    everyone = generated("llama")
    chosen = np.array([3, 1, 1, 2])
    prompts, z = [PROMPTS[i] for i in chosen], parts("llama")[-1][chosen]
    found = generated("llama", prompts, z=z, ids=chosen)
    np.testing.assert_array_equal(found.tokens, everyone.tokens[chosen])


def test_examples_and_keys_draw_apart():
    variables = parts("llama")[1]
    found = generated("llama", [[3, 1]] * 4, variables=variables).tokens
    assert len({tuple(text) for text in found}) == 4
    again = generated("llama", [[3, 1]] * 4, variables=variables).tokens
    np.testing.assert_array_equal(found, again)
    other = generated("llama", [[3, 1]] * 4, variables=variables, key=1).tokens
    assert (found != other).any(axis=1).all()


@pytest.mark.parametrize(
    ("name", "temperature"),
    [("llama", 1.0), pytest.param("windows", 0, marks=pytest.mark.slow)],
)
def test_padding_changes_nothing(name, temperature):
    found, wanted = (
        generated(name, length=length, temperature=temperature) for length in (11, 5)
    )
    np.testing.assert_array_equal(found.tokens, wanted.tokens)


def scripted(script):
    """A decoder that generates `script` `[B, steps]`, and a list of its inputs."""
    script, steps = jnp.asarray(script), []

    def step(tokens, mask, count):
        jax.debug.callback(lambda *xs: steps.append(xs), tokens, mask, ordered=True)
        return jax.nn.one_hot(script[:, count], 10), count + 1

    return g.Decoder(lambda batch, slots: jnp.zeros((), jnp.int32), step), steps


def test_stop_tokens_end_examples_and_the_last_one_ends_the_loop():
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
    kept, total, of_all = [], 0.0, p[order].sum()
    for token in order:
        kept.append(token)
        total += p[token] / of_all
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


def test_draws_are_those_of_jax():
    logits = jax.random.normal(jax.random.key(1), (50, VOCAB)).at[:, ::3].set(-jnp.inf)
    keys = jax.random.split(jax.random.key(0), 50)
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(g.sample))(keys, logits),
        jax.vmap(jax.random.categorical)(keys, logits),
    )


def test_temperature_zero_takes_the_first_of_the_best():
    logits = jnp.array([1.0, 3.0, 3.0, 2.0])
    assert g.sample(jax.random.key(0), logits, temperature=0, top_k=3, top_p=0.5) == 1


def test_left_pad():
    tokens, mask = g.left_pad([[3, 4], [5]], pad_token=9, length=4)
    assert tokens.tolist() == [[9, 9, 3, 4], [9, 9, 9, 5]]
    assert mask.tolist() == [[False, False, True, True], [False, False, False, True]]
    assert g.left_pad([[3, 4], [5]])[0].tolist() == [[3, 4], [0, 5]]
    with pytest.raises(InputError, match="prompt 0"):
        g.left_pad([[]])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts"),
        ([[1], []], "prompt 1"),
        ([[1, 2, 3, 4]], "prompt 0"),
    ],
)
def test_prompts_that_cannot_be_padded(prompts, message):
    with pytest.raises(InputError, match=message):
        g.left_pad(prompts, length=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_options_out_of_range(options, message):
    decoder, steps = scripted([[1]])
    with pytest.raises(InputError, match=message):
        run(decoder, [[5]], **options)
    with pytest.raises(InputError, match="prompts .* mask"):
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
