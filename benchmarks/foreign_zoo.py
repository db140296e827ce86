"""Models of other libraries, as their users write them, for `foreign_models.py`.

Each takes one example and is `width` wide; each kernel gets a scale of its outputs and
a low rank, each bias a shift. Convolutions have 8 x 8 positions, graphs 32 nodes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

TOKENS = 32
HEADS = 4


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of one example.

    Attributes:
      apply: `(params, x) -> array`.
      params: a pytree of arrays.
      spec: makes the spec from modulations of kernels `[input, output]` and biases.
      x: shape of one example.
    """

    apply: Callable
    params: Any
    spec: Callable[[Any, Any], list]
    x: tuple[int, ...]


MODELS: dict[str, Callable[[int], Model]] = {}


def _model(name: str):
    def register(make):
        MODELS[name] = make
        return make

    return register


def _filled(shapes):
    """Draws weights whose products keep the size of their inputs."""
    leaves, treedef = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    arrays = [
        jax.random.normal(key, w.shape)
        / max(1, w.size // max(w.shape, default=1)) ** 0.5
        for key, w in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, arrays)


def _linen(module, x, spec) -> Model:
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(x))
    return Model(module.apply, _filled(shapes), spec, x)


def _nnx(make, x, spec) -> Model:
    from flax import nnx

    graph, shapes, _ = nnx.split(
        nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...
    )
    rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)[2]

    def apply(params, x):
        return nnx.merge(graph, params, rest, copy=True)(x)

    return Model(apply, _filled(shapes), spec, x)


def _equinox(make, x, spec, call=lambda module, x: module(x)) -> Model:
    import equinox as eqx

    module = eqx.filter_eval_shape(make, jax.random.key(0))
    shapes, static = eqx.partition(module, lambda x: hasattr(x, "shape"))

    def apply(params, x):
        return call(eqx.combine(params, static), x)

    return Model(apply, _filled(shapes), spec, x)


def _haiku(make, x, spec) -> Model:
    import haiku as hk

    model = hk.without_apply_rng(hk.transform(make))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(x))
    return Model(model.apply, _filled(shapes), spec, x)


def _kernels(kernel: str, bias: str):
    return lambda own, shift: [(f".*{kernel}", own), (f".*{bias}", shift)]


def _output_first(own, shift):
    return [(".*weight.*", own.layout(0)), (".*bias.*", shift)]


@_model("linen transformer")
def linen_transformer(width):
    """Two pre-norm blocks of linen's own attention."""
    import flax.linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
            h = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
            return x + nn.Dense(width)(h)

    def spec(own, shift):
        return [
            (".*/out/kernel", own.layout(2, (0, 1))),
            (".*/(query|key|value)/kernel", own.layout((1, 2))),
            (".*/(query|key|value)/bias", shift.layout((0, 1), ())),
            (".*/kernel", own),
            (".*/bias", shift),
        ]

    return _linen(nn.Sequential([Block(), Block()]), (TOKENS, width), spec)


@_model("equinox transformer")
def equinox_transformer(width):
    """Two pre-norm blocks of equinox's own attention."""
    import equinox as eqx

    class Block(eqx.Module):
        attention: Any
        up: Any
        down: Any
        norms: Any

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.attention = eqx.nn.MultiheadAttention(HEADS, width, key=keys[0])
            self.up = eqx.nn.Linear(width, 4 * width, key=keys[1])
            self.down = eqx.nn.Linear(4 * width, width, key=keys[2])
            self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]

        def __call__(self, x, key=None):
            h = jax.vmap(self.norms[0])(x)
            x = x + self.attention(h, h, h)
            h = jax.vmap(self.up)(jax.vmap(self.norms[1])(x))
            return x + jax.vmap(self.down)(jax.nn.gelu(h))

    def make(key):
        return eqx.nn.Sequential([Block(k) for k in jax.random.split(key, 2)])

    def spec(own, shift):
        return [(".*norm.*", None), *_output_first(own, shift)]

    return _equinox(make, (TOKENS, width), spec)


@_model("haiku transformer")
def haiku_transformer(width):
    """Two pre-norm blocks of haiku's own attention."""
    import haiku as hk

    def make(x):
        for _ in range(2):
            h = hk.LayerNorm(-1, True, True)(x)
            init = hk.initializers.VarianceScaling()
            attention = hk.MultiHeadAttention(
                HEADS, width // HEADS, model_size=width, w_init=init
            )
            x = x + attention(h, h, h)
            h = hk.LayerNorm(-1, True, True)(x)
            x = x + hk.Linear(width)(jax.nn.gelu(hk.Linear(4 * width)(h)))
        return x

    return _haiku(make, (TOKENS, width), _kernels("/w", "/b"))


@_model("nnx attention")
def nnx_attention(width):
    """One layer of nnx's attention and a feed-forward layer."""
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(
                HEADS, width, decode=False, rngs=rngs
            )
            self.up = nnx.Linear(width, 4 * width, rngs=rngs)
            self.down = nnx.Linear(4 * width, width, rngs=rngs)

        def __call__(self, x):
            x = x + self.attention(x)
            return x + self.down(jax.nn.gelu(self.up(x)))

    def spec(own, shift):
        return [
            (".*out/kernel.*", own.layout(2, (0, 1))),
            (".*(query|key|value)/kernel.*", own.layout((1, 2))),
            (".*(query|key|value)/bias.*", shift.layout((0, 1), ())),
            (".*kernel.*", own),
            (".*bias.*", shift),
        ]

    return _nnx(Block, (TOKENS, width), spec)


def _linen_rnn(cell, width):
    import flax.linen as nn

    module = nn.RNN(getattr(nn, cell)(width))
    return _linen(module, (TOKENS, width), _kernels("/kernel", "/bias"))


@_model("linen LSTM")
def linen_lstm(width):
    """LSTM with eight products each step."""
    return _linen_rnn("LSTMCell", width)


@_model("linen optimised LSTM")
def linen_optimized_lstm(width):
    """LSTM that joins the kernels of its gates."""
    return _linen_rnn("OptimizedLSTMCell", width)


@_model("linen GRU")
def linen_gru(width):
    """GRU with six products each step."""
    return _linen_rnn("GRUCell", width)


@_model("haiku LSTM")
def haiku_lstm(width):
    """LSTM with one product each step, of inputs and state joined."""
    import haiku as hk

    def make(x):
        core = hk.LSTM(width)
        return hk.dynamic_unroll(core, x, core.initial_state(None))[0]

    return _haiku(make, (TOKENS, width), _kernels("/w", "/b"))


@_model("equinox GRU")
def equinox_gru(width):
    """GRU under `lax.scan`."""
    import equinox as eqx

    def call(cell, x):
        def step(h, x):
            h = cell(x, h)
            return h, h

        return jax.lax.scan(step, jnp.zeros(width), x)[1]

    def make(key):
        return eqx.nn.GRUCell(width, width, key=key)

    return _equinox(make, (TOKENS, width), _output_first, call)


@_model("linen conv net")
def linen_conv(width):
    """Three 3 x 3 convolutions and a dense layer."""
    import flax.linen as nn

    layers = [f for _ in range(3) for f in (nn.Conv(width, (3, 3)), nn.relu)]
    module = nn.Sequential([*layers, nn.Dense(width)])

    def spec(own, shift):
        dense = (f".*_{len(layers)}/kernel", own)
        return [dense, (".*kernel", own.layout(3, (0, 1, 2))), (".*bias", shift)]

    return _linen(module, (8, 8, width), spec)


@_model("equinox conv net")
def equinox_conv(width):
    """Three 3 x 3 convolutions, channels first."""
    import equinox as eqx

    def make(key):
        layers = []
        for k in jax.random.split(key, 3):
            layers += [eqx.nn.Conv2d(width, width, 3, padding=1, key=k)]
            layers += [eqx.nn.Lambda(jax.nn.relu)]
        return eqx.nn.Sequential(layers)

    def spec(own, shift):
        kernel = own.layout(0, (1, 2, 3))
        return [(".*weight", kernel), (".*bias", shift.layout(0, ()))]

    return _equinox(make, (width, 8, 8), spec)


@_model("equinox MLP")
def equinox_mlp(width):
    """Three layers on each of 32 rows."""
    import equinox as eqx

    def make(key):
        return eqx.nn.MLP(width, width, width, depth=2, key=key)

    def call(mlp, x):
        return jax.vmap(mlp)(x)

    return _equinox(make, (TOKENS, width), _output_first, call)


@_model("jraph graph net")
def jraph_net(width):
    """Two message-passing steps on a ring of 32 nodes with 64 edges."""
    import haiku as hk
    import jraph

    senders = jnp.concatenate([jnp.arange(TOKENS)] * 2)
    receivers = (senders + jnp.repeat(jnp.array([1, 5]), TOKENS)) % TOKENS

    def make(x):
        def update(*parts):
            joined = jnp.concatenate([p for p in parts if p is not None], -1)
            return jax.nn.relu(hk.Linear(width)(joined))

        def edges(edge, sent, received, _):
            return update(edge, sent, received)

        def nodes(node, _, received, __):
            return update(node, received)

        graph = jraph.GraphsTuple(
            nodes=x,
            edges=jnp.take(x, senders, 0),
            senders=senders,
            receivers=receivers,
            globals=None,
            n_node=jnp.array([TOKENS]),
            n_edge=jnp.array([2 * TOKENS]),
        )
        for _ in range(2):
            graph = jraph.GraphNetwork(edges, nodes)(graph)
        return graph.nodes

    return _haiku(make, (TOKENS, width), _kernels("/w", "/b"))


@_model("diffrax neural ODE")
def diffrax_ode(width):
    """An MLP integrated over 8 steps of Tsit5, on each of 32 rows."""
    import diffrax
    import equinox as eqx

    def make(key):
        return eqx.nn.MLP(width, width, width, depth=1, key=key)

    def call(mlp, x):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, _: jnp.tanh(jax.vmap(mlp)(y))),
            diffrax.Tsit5(),
            *(0.0, 1.0, 0.125, x),
            adjoint=diffrax.DirectAdjoint(),
            max_steps=8,
        )
        return solution.ys[0]

    return _equinox(make, (TOKENS, width), _output_first, call)


@_model("e3nn-jax network")
def e3nn(width):
    """Two equivariant linear layers of scalars and vectors with a gate."""
    import e3nn_jax as e3

    count = width // 4

    def make(x):
        features = e3.IrrepsArray(f"{count}x0e + {count}x1o", x)
        for _ in range(2):
            features = e3.haiku.Linear(f"{2 * count}x0e + {count}x1o")(features)
            features = e3.gate(features)
        return features.array

    def spec(own, _):
        return [(".*w.*", own)]

    return _haiku(make, (TOKENS, 4 * count), spec)
