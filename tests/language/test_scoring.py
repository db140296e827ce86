"""Scores of responses under a frozen model, against one item at a time."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from policies import language_model
from scipy.special import log_softmax
from slow import slow_but

from fsa.errors import InputError
from fsa.language import scoring
from fsa.language.poolings import POOLINGS
from fsa.language.scoring import embed_responses, score_responses
from fsa.language.token_table import TokenTable

pytestmark = pytest.mark.usefixtures("quick_compile")

# (tokens of the prompt, tokens of the response); the longest comes first.
QUICK = ("mean_and_last", "form")
NAMES = slow_but(QUICK, POOLINGS)
SIZES = [(5, 8), (2, 3), (0, 0), (4, 1), (3, 2), (1, 12), (2, 3), (0, 0), (1, 4)]


@functools.cache
def table():
    rng = np.random.default_rng(0)
    return TokenTable.of([(rng.integers(3, 80, a + b).tolist(), a) for a, b in SIZES])


def score(**options):
    options = {"buckets": (5, 13), "tokens_at_once": 26, "progress": False} | options
    return score_responses(*language_model(), table(), **options)


@functools.cache
def by_hand():
    """Returns log-probabilities `[I]`, and each item's states at its response."""
    model, variables = language_model()

    @jax.jit
    def run(tokens):
        states, _ = model.apply(variables, tokens, method=model.hidden)
        return states, model.apply(variables, states, method=model.unembed)

    log_probs, states = [], []
    for item, (start, length) in enumerate(SIZES):
        if not length:
            log_probs.append(0)
            states.append(np.zeros((1, model.width)))
            continue
        tokens = table()[item]
        hidden, logits = jax.tree.map(np.float64, run(tokens[None]))
        positions = np.arange(start, len(tokens))
        predicted = log_softmax(logits[0, positions - 1], axis=-1)
        log_probs.append(predicted[np.arange(length), tokens[positions]].sum())
        states.append(hidden[0, positions])
    return np.array(log_probs), states


@pytest.mark.parametrize("pooling", NAMES)
def test_scores_are_those_of_items_alone(pooling):
    log_prob, features = score(pooling=pooling)
    wanted, states = by_hand()
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-5)
    pool = {"mean": lambda x: x.mean(0), "last": lambda x: x[-1]}
    # What is measured in the text is none of the model's.
    parts = [pool[name] for name in pooling.split("_and_") if name in pool]
    wanted = [np.concatenate([part(x) for part in parts] or [[]]) for x in states]
    np.testing.assert_allclose(features, wanted, atol=1e-5)
    assert log_prob.dtype == features.dtype == np.float32
    assert len(set(log_prob.tolist())) == len(SIZES) - 1


def test_items_without_tokens_are_zeros():
    log_prob, features = score()
    for item, (_, length) in enumerate(SIZES):
        assert (log_prob[item] == 0) == (length == 0)
        assert features[item].any() == (length > 0)


@pytest.mark.parametrize(
    "options",
    [
        {"buckets": (13,)},
        {"buckets": (5, 6, 13, 16)},
        {"tokens_at_once": 1},
        pytest.param({"tokens_at_once": 10_000}, marks=pytest.mark.slow),
    ],
)
def test_padded_lengths_and_batch_sizes_change_nothing(options):
    for found, wanted in zip(score(**options), score(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_an_interrupted_scoring_goes_on(tmp_path, monkeypatch, is_damaged):
    """What was computed is not again, and the scores have the same bits."""
    kept, make, calls = tmp_path / "some.part", scoring._scorer, []
    run_all = functools.partial(score, tokens_at_once=13)
    whole = run_all()

    def run(*args, most=None):
        def counted(variables, tokens):
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append(1)
            return make(*args)(variables, tokens)

        return counted

    monkeypatch.setattr(scoring, "_scorer", functools.partial(run, most=2))
    with pytest.raises(KeyboardInterrupt):
        run_all(kept=kept)
    (file,) = kept.iterdir()
    if is_damaged:
        file.write_bytes(file.read_bytes()[:-40])
    # Of another computation.
    np.savez(kept / "other.npz", items=np.arange(3), rows=np.zeros((3, 2), np.float32))
    monkeypatch.setattr(scoring, "_scorer", run)
    found = run_all(kept=kept)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    again = len(calls)
    jax.tree.map(np.testing.assert_array_equal, run_all(kept=kept), whole)
    assert len(calls) == again
    calls.clear()
    run_all()
    assert again == len(calls) + (2 if is_damaged else 0)


def test_what_cannot_be_kept_is_computed_nevertheless(tmp_path, caplog):
    (tmp_path / "some.part").write_text("a file, and no folder")
    found = score(kept=tmp_path / "some.part")
    jax.tree.map(np.testing.assert_array_equal, found, score())
    assert "begin anew" in caplog.text


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="buckets"):
        score(buckets=(5, 12))
    with pytest.raises(ValueError, match="pooling"):
        score(pooling="max")


def test_low_precision_gives_float32():
    model, variables = language_model(dtype=jnp.bfloat16)
    found = score_responses(
        model, variables, table(), buckets=(13,), progress=False, tokens_at_once=39
    )
    for low, full in zip(found, score(), strict=True):
        assert low.dtype == np.float32
        assert 0 < np.abs(low - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.parametrize("pooling", NAMES)
def test_embeddings_alone_are_those_of_scores(pooling):
    options = dict(buckets=(5, 13), tokens_at_once=26, pooling=pooling)
    found = embed_responses(*language_model(), table(), **options)
    np.testing.assert_allclose(found, score(pooling=pooling)[1], rtol=1e-5, atol=1e-6)


def test_equal_items_are_embedded_once_and_without_logits(monkeypatch):
    rows, widest = [], 0
    make = scoring._scorer

    def counted(*args):
        def run(variables, tokens):
            nonlocal widest
            # One prompt with its response twice is no second item, but padding may be.
            rows.extend({t[:n].tobytes() for t, n in zip(*tokens[::2], strict=True)})
            jaxpr = jax.make_jaxpr(make(*args).jitted)(variables, tokens)
            shapes = [v.aval.shape for e in _equations(jaxpr.jaxpr) for v in e.outvars]
            widest = max(widest, *(s[-1] for s in shapes if s))
            return make(*args)(variables, tokens)

        return run

    monkeypatch.setattr(scoring, "_scorer", counted)
    model, variables = language_model()
    twice = TokenTable.of([(table()[i], table().start[i]) for i in [0, 1, 0, 1, 0]])
    found = embed_responses(model, variables, twice, buckets=(13,))
    assert len(rows) == 2
    np.testing.assert_array_equal(found[[0, 1, 0, 1, 0]], found)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert widest < model.vocab_size


def _equations(jaxpr):
    """Yields the equations of a jaxpr and of those in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _equations(inner)


def test_batches_hold_every_item_once_and_little_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 300, 700)
    items = TokenTable.of([([1] * n, 0) for n in lengths])
    for parts in (1, 4):
        found = list(scoring._batches(items, (64, 128, 512), 4096, parts))
        held = np.concatenate([batch for batch, _, _ in found])
        np.testing.assert_array_equal(np.sort(held), np.flatnonzero(lengths))
        assert len({(size, length) for _, size, length in found}) <= 6
        for length in (64, 128, 512):
            own = [(len(batch), size) for batch, size, n in found if n == length]
            empty = sum(size - count for count, size in own) * length
            assert empty <= parts * 1024
            assert all(size % parts == 0 for _, size in own)
