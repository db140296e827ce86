"""Default layouts on real layers of four libraries, against axes written out here."""

import jax
import jax.numpy as jnp
import pytest

from fsa.conditioning import (
    bridge,
    condition,
    hypernet,
    layouts,
    low_rank,
    scale,
    shift,
)
from fsa.conditioning.spec import axes_of, resolve

BOTH, LOW = scale("both") + low_rank(2), low_rank(2)
EVERYTHING = {"kernel": BOTH, "bias": shift(), "embedding": BOTH, "norm": scale()}


def axes(spec, params):
    """{path: (input axes, output axes, whether it is stacked)}."""
    found = {}
    for path, (modulation, leaf) in resolve(spec, params).items():
        roles = axes_of(path, modulation, leaf.shape)
        found[path] = roles["input"], roles["output"], bool(roles["stacked"])
    return found


def vectors(*paths, ndim=1):
    return {path: ((), tuple(range(ndim)), False) for path in paths}


def assert_runs_by_parts(model, params, spec, x):
    """Traced strictly: no parameter of these layouts has to be built."""
    init, modulate = hypernet(spec, 3)

    def run(key, params, z):
        tree = condition(params, modulate(init(key, params), z))
        return bridge(model, strict=True)(tree, x)

    z = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert jax.eval_shape(run, jax.random.key(0), params, z).shape[0] > 1


def test_linen():
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            h = nn.Dense(7)(nn.RMSNorm()(x))
            return x + nn.DenseGeneral(5, axis=(-1,), name="down")(h), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(19, 5)(ids)
            blocks = nn.scan(
                nn.remat(Block), {"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = blocks(name="blocks")(x, None)
            x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=14)(x)
            x = nn.RNN(nn.GRUCell(6), name="rnn")(x)
            x = nn.Einsum((6, 2, 3), "td,dhk->thk", name="mix")(x)
            x = nn.DenseGeneral(5, axis=(-2, -1), name="join")(jnp.tanh(x))
            x = nn.ConvTranspose(4, (2,), name="up")(nn.Conv(3, (3,), name="conv")(x))
            return nn.LayerNorm()(x) * self.param("own", nn.initializers.ones, (4,))

    net, ids = Net(), jnp.arange(4)
    found = layouts.linen(net, ids)
    params = jax.eval_shape(net.init, jax.random.key(0), ids)
    heads = "params/MultiHeadDotProductAttention_0"
    wanted = {
        "params/Embed_0/embedding": ((0,), (1,), False),
        "params/blocks/Dense_0/kernel": ((1,), (2,), True),
        "params/blocks/Dense_0/bias": ((), (1,), True),
        "params/blocks/RMSNorm_0/scale": ((), (1,), True),
        "params/blocks/down/kernel": ((1,), (2,), True),
        "params/blocks/down/bias": ((), (1,), True),
        **{f"{heads}/{n}/kernel": ((0,), (1, 2), False) for n in ("query", "key")},
        f"{heads}/value/kernel": ((0,), (1, 2), False),
        f"{heads}/out/kernel": ((0, 1), (2,), False),
        **vectors(*(f"{heads}/{n}/bias" for n in ("query", "key", "value")), ndim=2),
        **vectors(f"{heads}/out/bias"),
        "params/mix/kernel": ((0,), (1, 2), False),
        **vectors("params/mix/bias", ndim=2),
        "params/join/kernel": ((0, 1), (2,), False),
        # Inputs are scaled here, so the window is none of them.
        "params/conv/kernel": ((1,), (2,), False),
        "params/up/kernel": ((1,), (2,), False),
        **vectors("params/join/bias", "params/conv/bias", "params/up/bias"),
        **vectors("params/LayerNorm_0/scale", "params/LayerNorm_0/bias"),
    }
    gates = {
        path: ((0,), (1,), False) if path.endswith("kernel") else ((), (0,), False)
        for path in (f"params/{p}" for p in found.shapes if p.startswith("GRUCell"))
    }
    assert len(gates) == 10
    spec = found.spec(**EVERYTHING)
    assert axes(spec, params) == wanted | gates
    # The collection alone is fine too, and the window belongs to a low rank's inputs.
    convs = found.spec(kernel=LOW, only="conv/.*|up/.*")
    assert axes(convs, params["params"]) == {
        "conv/kernel": ((0, 1), (2,), False),
        "up/kernel": ((0, 1), (2,), False),
    }
    assert "not known" in str(found).split("own ")[1].splitlines()[0]
    assert_runs_by_parts(net.apply, params, spec, ids)


def test_linen_layers_stacked_along_another_axis():
    nn = pytest.importorskip("flax.linen")
    stacked = nn.vmap(
        nn.Dense, variable_axes={"params": 1}, split_rngs={"params": True}
    )
    found = layouts.linen(stacked(4), jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="modulate nothing(.|\n)*kernel .*not known"):
        found.spec(kernel=scale())


def test_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(19, 5, rngs=rngs)
            self.heads = nnx.MultiHeadAttention(2, 5, 14, decode=False, rngs=rngs)
            self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(5, 6, rngs=rngs), rngs=rngs)
            self.mix = nnx.Einsum("td,dhk->thk", (6, 2, 3), (2, 3), rngs=rngs)
            self.join = nnx.LinearGeneral((2, 3), 5, axis=(-2, -1), rngs=rngs)
            self.conv = nnx.Conv(5, 3, (2,), rngs=rngs)
            self.norm = nnx.LayerNorm(3, rngs=rngs)
            self.stacked = nnx.vmap(lambda r: nnx.Linear(3, 3, rngs=r))(rngs.split(4))

        def __call__(self, ids):
            x = self.rnn(self.heads(self.embed(ids)))
            x = self.norm(self.conv(self.join(jnp.tanh(self.mix(x)))))
            step = nnx.scan(
                lambda x, m: jnp.tanh(m(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )
            return step(x, self.stacked)

    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    spec = layouts.nnx(nnx.merge(graph, params, rest)).spec(**EVERYTHING)
    names = ("query", "key", "value")
    assert axes(spec, params) == {
        "embed/embedding/value": ((0,), (1,), False),
        **{f"heads/{n}/kernel/value": ((0,), (1, 2), False) for n in names},
        **vectors(*(f"heads/{n}/bias/value" for n in names), ndim=2),
        "heads/out/kernel/value": ((0, 1), (2,), False),
        "rnn/cell/dense_i/kernel/value": ((0,), (1,), False),
        "rnn/cell/dense_h/kernel/value": ((0,), (1,), False),
        "mix/kernel/value": ((0,), (1, 2), False),
        **vectors("mix/bias/value", ndim=2),
        "join/kernel/value": ((0, 1), (2,), False),
        "conv/kernel/value": ((1,), (2,), False),
        "stacked/kernel/value": ((1,), (2,), True),
        "stacked/bias/value": ((), (1,), True),
        **vectors(
            *("heads/out/bias/value", "rnn/cell/dense_h/bias/value"),
            *("join/bias/value", "conv/bias/value"),
            *("norm/scale/value", "norm/bias/value"),
        ),
    }

    def model(params, ids):
        return nnx.merge(graph, params, rest, copy=True)(ids)

    assert_runs_by_parts(model, params, spec, jnp.arange(4))


def test_equinox():
    eqx = pytest.importorskip("equinox")
    nn, key = eqx.nn, jax.random.key(0)
    net = {
        "embed": nn.Embedding(19, 6, key=key),
        "heads": nn.MultiheadAttention(2, 6, use_output_bias=True, key=key),
        "norm": nn.LayerNorm(6),
        "stacked": eqx.filter_vmap(lambda k: nn.Linear(6, 6, key=k))(
            jax.random.split(key, 3)
        ),
        "gru": nn.GRUCell(6, 5, key=key),
        "conv": nn.Conv1d(5, 4, 2, key=key),
        "up": nn.ConvTranspose1d(4, 3, 2, key=key),
        "normed": nn.WeightNorm(nn.Linear(3, 2, key=key)),
    }

    def run(net, ids):
        x = jax.vmap(net["embed"])(ids)
        x = jax.vmap(net["norm"])(net["heads"](x, x, x))
        layers, static = eqx.partition(net["stacked"], eqx.is_array)
        x, _ = jax.lax.scan(
            lambda x, p: (jnp.tanh(jax.vmap(eqx.combine(p, static))(x)), None),
            *(x, layers),
        )
        _, x = jax.lax.scan(lambda h, x: (net["gru"](x, h),) * 2, jnp.zeros(5), x)
        return jax.vmap(net["normed"])(net["up"](net["conv"](x.T)).T)

    params, static = eqx.partition(net, eqx.is_array)
    found = layouts.equinox(net)
    projections = ("query", "key", "value", "output")
    wanted = {
        "embed/weight": ((0,), (1,), False),
        **{f"heads/{n}_proj/weight": ((1,), (0,), False) for n in projections},
        "stacked/weight": ((2,), (1,), True),
        "stacked/bias": ((), (1,), True),
        "gru/weight_ih": ((1,), (0,), False),
        "gru/weight_hh": ((1,), (0,), False),
        "conv/weight": ((1,), (0,), False),
        "up/weight": ((1,), (0,), False),
        **vectors("heads/output_proj/bias", "norm/weight", "norm/bias"),
        **vectors("gru/bias", "gru/bias_n", "conv/bias", "up/bias"),
    }
    spec = found.spec(**EVERYTHING)
    assert axes(spec, params) == wanted
    assert axes(found.spec(kernel=LOW, only="up/.*"), params) == {
        "up/weight": ((1, 2), (0,), False)
    }
    assert str(found).count("not known") == 3  # WeightNorm's, and its layer's.
    assert_runs_by_parts(
        lambda p, ids: run(eqx.combine(p, static), ids), params, spec, jnp.arange(4)
    )


def test_haiku():
    hk = pytest.importorskip("haiku")

    def net(ids):
        def layer(x):
            return x + jnp.tanh(hk.Linear(5)(hk.LayerNorm(-1, True, True)(x)))

        x = hk.experimental.layer_stack(3)(layer)(hk.Embed(19, 5)(ids))
        init = hk.initializers.VarianceScaling()
        x = hk.MultiHeadAttention(2, 7, model_size=6, w_init=init)(x, x, x)
        x, _ = hk.dynamic_unroll(hk.GRU(6), x, jnp.zeros(6))
        core = hk.LSTM(5)
        x, _ = hk.dynamic_unroll(core, x, core.initial_state(None))
        x = hk.Conv1DTranspose(4, 2, name="up")(hk.Conv1D(3, 2, name="conv")(x))
        x = hk.Conv1D(3, 2, data_format="NCW", name="first")(x.T).T
        return hk.DepthwiseConv1D(2, 2, name="depthwise")(x[None])[0]

    model = hk.without_apply_rng(hk.transform(net))
    ids = jnp.arange(4)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)
    found = layouts.haiku(net, ids)
    heads, stack = "multi_head_attention", "__layer_stack_no_per_layer"
    names = ("query", "key", "value", "linear")
    wanted = {
        "embed/embeddings": ((0,), (1,), False),
        f"{stack}/linear/w": ((1,), (2,), True),
        f"{stack}/linear/b": ((), (1,), True),
        f"{stack}/layer_norm/scale": ((), (1,), True),
        f"{stack}/layer_norm/offset": ((), (1,), True),
        **{f"{heads}/{n}/w": ((0,), (1,), False) for n in names},
        **vectors(*(f"{heads}/{n}/b" for n in names)),
        **{f"gru/{n}": ((0,), (1,), False) for n in ("w_i", "w_h")},
        "lstm/linear/w": ((0,), (1,), False),
        "conv/w": ((1,), (2,), False),
        "up/w": ((2,), (1,), False),
        "first/w": ((1,), (2,), False),
        "depthwise/w": ((1,), (2,), False),
        **vectors("gru/b", "lstm/linear/b", "conv/b", "up/b", "first/b", "depthwise/b"),
    }
    spec = found.spec(**EVERYTHING)
    assert axes(spec, params) == wanted
    assert_runs_by_parts(model.apply, params, spec, ids)


def test_a_spec_that_modulates_nothing_is_refused():
    pytest.importorskip("equinox")
    import equinox as eqx

    found = layouts.equinox(eqx.nn.Linear(5, 7, key=jax.random.key(0)))
    for options in ({}, {"embedding": scale()}, {"kernel": scale(), "only": "w"}):
        with pytest.raises(ValueError, match="modulate nothing"):
            found.spec(**options)
    with pytest.raises(ValueError, match="`kernel` has a layout"):
        found.spec(kernel=scale().layout(0))
