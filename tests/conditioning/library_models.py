"""Models from libraries, as their authors wrote them, each with a spec.

A model whose library is not installed skips the test that asks for it. Libraries store
kernels input first (Flax, Haiku) or output first (Equinox, hence `layout(0)`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from arrays import normal
from plain_models import BOTH, GENERATED, Model, examples, tokens

from fsa.conditioning import low_rank, scale, shift

LIBRARIES: dict[str, Callable[[], Model]] = {}

HEADS_OUT = (scale("both") + low_rank(2)).layout((1, 2))
HEADS_BIAS = shift().layout((0, 1), ())
OUTPUT_FIRST = BOTH.layout(0)


def _model(make):
    LIBRARIES[make.__name__] = make
    return make


def _filled(shapes):
    """Weights of these shapes: those of an initialiser take long to compile."""
    return jax.tree.map(lambda w: normal(w.size, *w.shape, std=0.3), shapes)


def _linen(module, spec, x):
    shapes = jax.eval_shape(module.init, jax.random.key(0), x[0])
    return Model(module.apply, _filled(shapes), spec, x)


@_model
def linen_attention():
    nn = pytest.importorskip("flax.linen")
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=10)
    spec = [
        (".*/out/kernel", BOTH),
        (".*/kernel", HEADS_OUT),
        (".*/out/bias", shift()),
        (".*/bias", HEADS_BIAS),
    ]
    return _linen(module, spec, examples(3, 7))


def _linen_rnn(cell, kernels=BOTH):
    nn = pytest.importorskip("flax.linen")
    spec = [(".*/kernel", kernels), (".*/bias", shift())]
    return _linen(nn.RNN(getattr(nn, cell)(11)), spec, examples(2, 17))


@_model
def linen_lstm():
    return _linen_rnn("LSTMCell")


@_model
def linen_optimized_lstm():
    """Joins the gates' kernels in each call, so that they share their inputs' scale."""
    return _linen_rnn("OptimizedLSTMCell", scale() + low_rank(2))


@_model
def linen_gru():
    return _linen_rnn("GRUCell")


@_model
def linen_conv_net():
    nn = pytest.importorskip("flax.linen")
    module = nn.Sequential(
        [
            nn.Conv(7, (3, 2), strides=(1, 2)),
            nn.gelu,
            nn.GroupNorm(num_groups=None, group_size=7),
            nn.ConvTranspose(11, (2, 2), strides=(2, 1)),
            nn.gelu,
            nn.LayerNorm(),
            nn.Dense(7),
        ]
    )
    spec = [
        (".*/layers_6/kernel", BOTH),
        (".*/kernel", BOTH.layout(3, 2)),
        (".*/scale", scale()),
        (".*/bias", shift()),
    ]
    return _linen(module, spec, examples(2, 2, 5))


@_model
def linen_scan_and_remat():
    """An embedding, tied to the output, around layers under `nn.scan` of `nn.remat`."""
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            h = nn.gelu(nn.Dense(17, name="up")(nn.RMSNorm()(x)))
            return x + nn.Dense(11, name="down")(h), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(19, 11, name="embed")
            blocks = nn.scan(
                nn.remat(Block), {"params": 0}, split_rngs={"params": True}, length=3
            )
            return embed.attend(blocks(name="blocks")(embed(ids), None)[0])

    spec = [
        (".*/kernel", BOTH.layout(stacked=True)),
        (".*/(scale|bias)", shift().layout(stacked=True)),
        (".*/embedding", BOTH),
    ]
    return _linen(Stack(), spec, tokens(2, 19))


def _nnx(make, spec, x):
    nnx = pytest.importorskip("flax.nnx")

    def build():
        return make(nnx, nnx.Rngs(0))

    graph, shapes, _ = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
    rest = jax.jit(lambda: nnx.split(build(), nnx.Param, ...)[2])()

    def apply(params, x):
        return nnx.merge(graph, params, rest, copy=True)(x)

    return Model(apply, _filled(shapes), spec, x)


@_model
def nnx_attention():
    def make(nnx, rngs):
        return nnx.MultiHeadAttention(2, 7, 10, decode=False, rngs=rngs)

    spec = [
        ("out/kernel.*", BOTH),
        (".*/kernel.*", HEADS_OUT),
        ("out/bias.*", shift()),
        (".*/bias.*", HEADS_BIAS),
    ]
    return _nnx(make, spec, examples(3, 7))


@_model
def nnx_conv_net():
    def make(nnx, rngs):
        return nnx.Sequential(
            nnx.Conv(5, 6, (3, 2), rngs=rngs),
            jax.nn.relu,
            nnx.Conv(6, 10, (2, 3), feature_group_count=2, rngs=rngs),
            nnx.LayerNorm(10, rngs=rngs),
            lambda x: x.mean((0, 1)),
            nnx.Linear(10, 17, rngs=rngs),
            nnx.LoRALinear(17, 7, lora_rank=3, rngs=rngs),
        )

    spec = [
        ("layers/0/kernel.*", BOTH.layout(3, 2)),
        ("layers/2/kernel.*", scale("both").layout(3, 2)),
        (".*/kernel.*", BOTH),
        (".*/scale.*", scale()),
        (".*/bias.*", shift()),
    ]
    return _nnx(make, spec, examples(2, 3, 5))


@_model
def nnx_lstm():
    def make(nnx, rngs):
        return nnx.RNN(nnx.OptimizedLSTMCell(5, 7, rngs=rngs), rngs=rngs)

    return _nnx(make, [(".*/kernel.*", BOTH), (".*/bias.*", shift())], examples(3, 5))


@_model
def nnx_tied_embeddings():
    def make(nnx, rngs):
        class Tied(nnx.Module):
            def __init__(self):
                self.embed = nnx.Embed(19, 11, rngs=rngs)
                self.mix = nnx.Einsum("td,dhk->thk", (11, 2, 7), (2, 7), rngs=rngs)
                self.out = nnx.LinearGeneral((2, 7), 11, axis=(-2, -1), rngs=rngs)

            def __call__(self, ids):
                x = self.embed(ids)
                return self.embed.attend(x + self.out(jnp.tanh(self.mix(x))))

        return Tied()

    spec = [
        ("embed/.*|out/kernel.*", BOTH),
        ("mix/kernel.*", HEADS_OUT),
        ("mix/bias.*", HEADS_BIAS),
    ]
    return _nnx(make, spec, tokens(3, 19))


def _equinox(make, spec, x, call=lambda module, x: module(x)):
    eqx = pytest.importorskip("equinox")
    module = eqx.filter_eval_shape(make, eqx.nn, jax.random.key(0))
    shapes, static = eqx.partition(module, lambda x: hasattr(x, "shape"))

    def apply(params, x):
        return call(eqx.combine(params, static), x)

    return Model(apply, _filled(shapes), spec, x)


@_model
def equinox_mlp():
    def make(nn, key):
        return nn.MLP(11, 7, 13, depth=2, key=key)

    spec = [(".*weight", OUTPUT_FIRST + shift("input")), (".*bias", shift())]
    return _equinox(make, spec, examples(11))


@_model
def equinox_attention():
    def make(nn, key):
        return nn.MultiheadAttention(
            *(2, 11),
            **{"qk_size": 7, "vo_size": 5, "output_size": 17, "key": key},
            **{"use_query_bias": True, "use_output_bias": True},
        )

    spec = [
        ("value_proj/weight", GENERATED.layout(0)),
        (".*weight", OUTPUT_FIRST),
        (".*bias", shift()),
    ]
    return _equinox(make, spec, examples(3, 11), lambda module, x: module(x, x, x))


@_model
def equinox_conv_net():
    def make(nn, key):
        return nn.Sequential(
            [
                nn.Conv2d(5, 7, (3, 2), stride=(1, 2), padding=1, key=key),
                nn.Lambda(jax.nn.relu),
                nn.GroupNorm(7, 7),
                nn.Conv2d(7, 3, (2, 2), key=key),
                nn.Lambda(jnp.ravel),
                nn.Linear(6, 11, key=key),
            ]
        )

    spec = [
        ("layers/5/weight", OUTPUT_FIRST),
        ("layers/[03]/weight", BOTH.layout(0, 1)),
        ("layers/[03]/bias", shift().layout(0, ())),
        (".*/(weight|bias)", shift()),
    ]
    return _equinox(make, spec, examples(5, 3, 2))


@_model
def equinox_gru():
    def make(nn, key):
        return nn.GRUCell(7, 11, key=key)

    def call(cell, x):
        def step(h, x):
            h = cell(x, h)
            return h, h

        return jax.lax.scan(step, jnp.zeros(11), x)[1]

    spec = [(".*weight.*", OUTPUT_FIRST), (".*bias.*", shift())]
    return _equinox(make, spec, examples(3, 7), call)


def _haiku(make, spec, x):
    hk = pytest.importorskip("haiku")
    model = hk.without_apply_rng(hk.transform(lambda x: make(hk, x)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x[0])
    return Model(model.apply, _filled(shapes), spec, x)


@_model
def haiku_transformer():
    def make(hk, x):
        for _ in range(2):
            h = hk.LayerNorm(-1, True, True)(x)
            attention = hk.MultiHeadAttention(
                2, 7, model_size=11, w_init=hk.initializers.VarianceScaling()
            )
            x = x + attention(h, h, h)
            h = hk.LayerNorm(-1, True, True)(x)
            x = x + hk.Linear(11)(jax.nn.gelu(hk.Linear(17)(h)))
        return x

    spec = [
        (".*/w", BOTH),
        (".*layer_norm.*/scale", scale()),
        (".*/(b|offset)", shift()),
    ]
    return _haiku(make, spec, examples(3, 11))


@_model
def haiku_lstm():
    def make(hk, x):
        core = hk.LSTM(11)
        return hk.dynamic_unroll(core, x, core.initial_state(None))[0]

    return _haiku(make, [(".*/w", BOTH), (".*/b", shift())], examples(2, 7))


@_model
def haiku_layer_stack():
    """An embedding and layers under `hk.experimental.layer_stack`."""

    def make(hk, x):
        def layer(x):
            return x + jnp.tanh(hk.Linear(11)(jax.nn.relu(hk.Linear(17)(x))))

        x = hk.Embed(19, 11)(x)
        return hk.experimental.layer_stack(3)(layer)(x)

    spec = [
        (".*embed/.*", BOTH),
        (".*/w", BOTH.layout(stacked=True)),
        (".*/b", shift().layout(stacked=True)),
    ]
    return _haiku(make, spec, tokens(2, 19))
