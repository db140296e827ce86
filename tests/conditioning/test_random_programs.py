"""Random compositions of what models do with weights, against folding, in float64.

A program is a list of integers: each chooses an operation on one of two weights or on
the activations, until the integers are used up; what is not a product ends in one.
Values and the gradients of every part and of the example are compared.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import float64
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from fsa.conditioning import Conditioned, bridge, fold, report

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

N = 4  # Every weight is [N, N] between operations, so few programs are compiled.


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


MASK = np.tril(np.ones((N, N)))
ORDER = np.array([2, 0, 3, 1])


def weights(kind):
    """Two weights; the bits of `kind` say which modulations they have."""

    def one(seed, kind):
        scales = [(N, 1), (1, N), (1, 1)]
        factors = [(N, 1, 2), (1, 1, 2), (1, N, 2)], [(1, N, 1)]
        return Conditioned(
            jnp.asarray(numbers(seed, N, N)),
            tuple(
                jnp.asarray(0.3 * numbers(seed + n + 1, *shape))
                for n, shape in enumerate(scales)
                if kind >> n & 1
            ),
            tuple(
                tuple(jnp.asarray(0.5 * numbers(seed + 9 + n, *s)) for n, s in pairs)
                for t, pairs in enumerate(map(list, map(enumerate, factors)))
                if kind >> (3 + t) & 1
            ),
        )

    return one(0, kind % 32), one(50, kind // 32 % 32)


def joined(a, b, axis):
    both = jnp.concatenate([a, b], axis)
    return lax.slice_in_dim(both, N // 2, N // 2 + N, 1, axis)


# Each takes the weight, the other weight and the example.
OF_WEIGHTS = [
    lambda w, v, x: w.T,
    lambda w, v, x: -w,
    lambda w, v, x: w * 0.3,
    lambda w, v, x: w / 7.0,
    lambda w, v, x: w * x[0, 0],
    lambda w, v, x: w * MASK,
    lambda w, v, x: jnp.where(MASK > 0, w, 0.0),
    lambda w, v, x: jnp.where(MASK > 0, 0.5, w),
    lambda w, v, x: jnp.triu(w),
    lambda w, v, x: w * np.arange(1.0, N + 1),
    lambda w, v, x: w * x[0, :, None],
    lambda w, v, x: w / (1.0 + np.arange(N)[:, None]),
    lambda w, v, x: w + MASK,
    lambda w, v, x: 1.0 - w,
    lambda w, v, x: w - x[1],
    lambda w, v, x: w + x[0, 1],
    lambda w, v, x: w[ORDER],
    lambda w, v, x: w[:, ::-1],
    lambda w, v, x: lax.rev(w, (0,)),
    lambda w, v, x: lax.pad(w, 0.0, ((1, 1, 0), (0, 2, 0)))[1 : N + 1, 1 : N + 1],
    lambda w, v, x: lax.pad(w, 1.5, ((2, 0, 1), (1, 0, 0)))[2 : N + 2, :N],
    lambda w, v, x: jnp.roll(w, 1, 1),
    lambda w, v, x: jnp.concatenate(jnp.split(w, 2, 1)[::-1], 1),
    lambda w, v, x: joined(w, v, 0),
    lambda w, v, x: joined(w, v, 1),
    lambda w, v, x: joined(w, MASK, 1),
    lambda w, v, x: jnp.stack([w, v])[1],
    lambda w, v, x: jnp.stack([w, v], 2)[..., 0],
    lambda w, v, x: w.reshape(2, N // 2, N)[None].reshape(N, N),
    lambda w, v, x: jnp.squeeze(w[:, None], 1),
    lambda w, v, x: jnp.broadcast_to(w, (3, N, N))[1],
    lambda w, v, x: jnp.take(w, ORDER - 1, 0, mode="fill", fill_value=0.25),
    lambda w, v, x: lax.dynamic_slice(jnp.concatenate([w, w]), (1, 0), (N, N)),
    lambda w, v, x: checkpoint_name(w, "w"),
    lambda w, v, x: jax.checkpoint(lambda w: w * 2.0)(w),
    lambda w, v, x: jax.jit(lambda w: w.T)(w),
    lambda w, v, x: lax.cond(x[0, 0] > 0, lambda: w, lambda: w * 2.0),
    lambda w, v, x: jnp.tanh(w),
    lambda w, v, x: w @ v,
    lambda w, v, x: w + v,
]
# Each takes the example, the weight and the other weight.
OF_EXAMPLES = [
    lambda x, w, v: jnp.tanh(x @ w),
    lambda x, w, v: jnp.sin((w @ x.T).T),
    lambda x, w, v: jnp.einsum("td,fd->tf", x, w),
    lambda x, w, v: jnp.einsum("td,dhk->thk", x, w.reshape(N, 2, -1)).reshape(x.shape),
    lambda x, w, v: jnp.einsum("tf,nf->tn", x, w[jnp.array([0, 0, 2, 1])]),
    lambda x, w, v: x + w[jnp.argmax(x, 1)],
    lambda x, w, v: x * w[0] + jnp.diagonal(w),
    lambda x, w, v: lax.scan(lambda x, w: (jnp.tanh(x @ w), 0), x, jnp.stack([w, v]))[
        0
    ],
    lambda x, w, v: lax.fori_loop(0, 2, lambda i, x: jnp.tanh(x @ w) + w[i], x),
    lambda x, w, v: jax.checkpoint(lambda x, w: jnp.cos(x @ w))(x, w),
    lambda x, w, v: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ v.T),
    lambda x, w, v: jax.vmap(lambda row: jnp.tanh(row @ w))(x),
    lambda x, w, v: jnp.tanh(x @ jnp.concatenate([w, v], 1))[:, 2 : N + 2],
    lambda x, w, v: jax.vmap(jnp.dot, (None, 0))(x, jnp.stack([w, v])).sum(0),
    lambda x, w, v: (
        lax.conv_general_dilated(
            *(x.T[None], w.reshape(N, 2, 2), (1,), "SAME"),
            dimension_numbers=("NCH", "OIH", "NCH"),
            feature_group_count=2,
        )[0].T
    ),
    lambda x, w, v: (
        lax.conv_general_dilated(
            *(x.T[None], w[:, :, None], (1,), "SAME"),
            dimension_numbers=("NCH", "OIH", "NCH"),
        )[0].T
    ),
]


def program(choices):
    def run(pair, x):
        pair = list(pair)
        for choice in choices:
            side, choice = choice % 2, choice // 2
            w, v = pair[side], pair[1 - side]
            if choice % 3:
                op = OF_WEIGHTS[choice // 3 % len(OF_WEIGHTS)]
                pair[side] = op(w, v, x)
            else:
                x = OF_EXAMPLES[choice // 3 % len(OF_EXAMPLES)](x, w, v)
        return x @ pair[0] - x @ pair[1]

    return run


def check(programs):
    """Compares both ways for each `(kind of modulations, choices)`, as one program."""
    with float64():
        x = jnp.asarray(numbers(7, 3, N))
        pairs = [weights(kind) for kind, _ in programs]

        @functools.partial(jax.jit, compiler_options=QUICK)
        def both(pairs, x):
            outs = []
            for (_, choices), pair in zip(programs, pairs, strict=True):
                run = program(choices)

                def loss(pair, x, apply):
                    out = apply(pair, x)
                    weight = np.cos(np.arange(out.size)).reshape(out.shape)
                    return (out * weight).sum(), out

                ways = bridge(run), lambda pair, x, run=run: run(fold(pair), x)
                take = jax.value_and_grad(loss, (0, 1), has_aux=True)
                outs.append([take(pair, x, way) for way in ways])
            return outs

        for described, (result, wanted) in zip(programs, both(pairs, x), strict=True):
            largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(wanted))
            leaves = map(jax.tree.leaves, (result, wanted))
            for got, right in zip(*leaves, strict=True):
                assert got.shape == right.shape
                assert got.dtype == right.dtype == jnp.float64
                np.testing.assert_allclose(
                    *(got, right),
                    rtol=1e-8,
                    atol=1e-10 * max(largest, 1.0),
                    err_msg=str(described),
                )


QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}
TOGETHER = 10  # Programs that are compiled at once, which takes less time.
PROGRAMS = st.lists(
    st.tuples(
        st.integers(0, 32 * 32 - 1),
        st.lists(st.integers(0, 719), min_size=1, max_size=4),
    ),
    min_size=TOGETHER,
    max_size=TOGETHER,
)
OPTIONS = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
    # A failure shows its ten programs; to shrink them would compile hundreds.
    "phases": [hypothesis.Phase.generate],
}


@pytest.mark.slow
@hypothesis.settings(max_examples=100 // TOGETHER, **OPTIONS)
@hypothesis.given(programs=PROGRAMS)
def test_random_programs(programs):
    check(programs)


@pytest.mark.slow
@hypothesis.settings(max_examples=2000 // TOGETHER, **OPTIONS)
@hypothesis.given(programs=PROGRAMS)
def test_many_random_programs(programs):
    check(programs)


def test_most_operations_are_by_parts():
    """The others of the lists above are there because they build a weight."""
    pair, x = weights(31 + 32 * 31), jnp.asarray(numbers(7, 3, N))
    built = []
    for op in OF_WEIGHTS:
        found = report(lambda p, x, op=op: x @ op(*p, x), pair, x)
        built.append(bool(found.materialized))
    assert sum(built) <= 9
