"""`@`, matmul, einsum, take and conv by parts, against the folded parameter."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, normal

from fsa.conditioning import (
    Conditioned,
    MaterializationError,
    conv,
    einsum,
    fold,
    matmul,
    take,
)


def make(shape, *, scales=(), ranks=(), seed=0):
    """Axes of each scale, and of each factor of terms of rank 2."""

    def part(n, axes, *rank):
        sizes = [size if i in axes else 1 for i, size in enumerate(shape)]
        return normal(seed + n, *sizes, *rank)

    return Conditioned(
        normal(seed + 100, *shape),
        tuple(part(n, axes) for n, axes in enumerate(scales)),
        tuple(
            tuple(part(10 * t + n + 20, axes, 2) for n, axes in enumerate(term))
            for t, term in enumerate(ranks)
        ),
    )


def check(*cases):
    """Compares each (function, leaf, other arguments) with the folded leaf's result."""

    @jax.jit
    def run(arguments):
        pairs = list(zip(cases, arguments, strict=True))
        by_parts = [fn(leaf, *args) for (fn, *_), (leaf, *args) in pairs]
        folded = [fn(fold(leaf), *args) for (fn, *_), (leaf, *args) in pairs]
        return by_parts, folded

    by_parts, folded = run([arguments for _, *arguments in cases])
    for result, wanted in zip(by_parts, folded, strict=True):
        assert error(result, wanted) < 1e-5


BOTH = {"scales": [(0,), (1,)], "ranks": [[(0,), (), (1,)], [(1,)], [(0,)], [()]]}


@pytest.mark.parametrize("lead", [(), (4,), (3, 4)])
def test_matmul(lead):
    leaf = make((5, 7), **BOTH)
    check(
        (lambda w, x: matmul(x, w), leaf, normal(1, *lead, 5)),
        (lambda w, x: x @ w, leaf, normal(1, *lead, 5)),
        (lambda w, x: matmul(w, x), leaf, normal(1, *lead[:1], 7, 2)),
        (lambda w, x: w.T @ x, leaf, normal(1, 5)),
    )


@pytest.mark.parametrize(
    "subscripts, x_shape, w_shape, inputs",
    [
        ("td,dhk->thk", (4, 5), (5, 2, 3), (0,)),
        ("thk,hkd->td", (4, 2, 3), (2, 3, 5), (0, 1)),
        ("td,dhk->htk", (4, 5), (5, 2, 3), (0,)),
        ("etd,edf->etf", (3, 4, 5), (3, 5, 7), (0, 1)),
        ("td,edf->etf", (4, 5), (3, 5, 7), (1,)),
        ("td,vd->tv", (4, 5), (11, 5), (1,)),
        ("d,df->f", (5,), (5, 7), (0,)),
        ("td,dd->td", (4, 5), (5, 5), None),
    ],
)
def test_einsum(subscripts, x_shape, w_shape, inputs):
    if inputs is None:
        # A diagonal of w: the only way is to build it.
        with pytest.raises(MaterializationError):
            einsum(subscripts, normal(1, *x_shape), make(w_shape, **BOTH))
        return
    others = tuple(i for i in range(len(w_shape)) if i not in inputs)
    leaf = make(w_shape, scales=[inputs, others], ranks=[[inputs, (), others]])
    check_both_orders(subscripts, leaf, normal(1, *x_shape))


def check_both_orders(subscripts, leaf, x):
    left, out = subscripts.split("->")
    swapped = ",".join(reversed(left.split(","))) + "->" + out
    check(
        (lambda w, x: einsum(subscripts, x, w), leaf, x),
        (lambda w, x: einsum(swapped, w, x), leaf, x),
    )


def test_batch_axes_may_be_modulated():
    """As experts of a mixture: E is an axis of x, of w and of the result."""
    leaf = make(
        (3, 5, 7), scales=[(0,), (0, 1), (0, 2)], ranks=[[(0, 1), (0,), (0, 2)]]
    )
    check((lambda w, x: einsum("etd,edf->etf", x, w), leaf, normal(1, 3, 4, 5)))


@pytest.mark.parametrize(
    "subscripts, x_shape, w_shape, axes",
    [
        ("td,edf->etf", (4, 5), (3, 5, 7), (0, 1)),
        ("td,edf->tfe", (4, 5), (3, 5, 7), (0, 1)),
        ("gtd,gdef->tgef", (2, 4, 5), (2, 5, 3, 7), (1, 2)),
        ("etf,efd->td", (3, 4, 7), (3, 7, 5), (0, 2)),
        ("tfge,gefd->gdt", (4, 7, 2, 3), (2, 3, 7, 5), (1, 3)),
    ],
)
def test_a_scale_of_contracted_and_other_axes(subscripts, x_shape, w_shape, axes):
    """As of experts, inputs and outputs apart; one more scale follows its own way."""
    leaf = make(w_shape, scales=[axes, (len(w_shape) - 1,)])
    check_both_orders(subscripts, leaf, normal(1, *x_shape))


def test_the_gradient_of_a_factor_transposes_no_activations():
    """It is `g.T @ x`, not `x.T @ g`, which XLA runs slowly on CPU."""
    users, tokens, width, rank = 3, 11, 64, 2
    x = normal(1, users, tokens, width)
    b, s = normal(2, 1, 7, rank), normal(3, users, 1, 1, rank)

    def loss(a):
        def example(s, x):
            return x @ Conditioned(jnp.ones((width, 7)), (), ((a, s, b),))

        return jnp.sum(jax.vmap(example)(s, x) ** 2)

    a = normal(4, width, 1, rank)
    text = jax.jit(jax.grad(loss)).lower(a).compile().as_text()
    assert f"f32[{rank},{width}]" in text
    assert not re.search(rf"f32\[{width},{rank}\]\S* dot\(", text)
    assert not re.search(rf"f32\[{width},({users},{tokens}|{users * tokens})\]", text)


def test_low_rank_has_derivatives_of_both_modes():
    leaf = make((5, 7), ranks=[[(0,), (), (1,)]])
    x = normal(1, 4, 5)

    def loss(terms, weight):
        return jnp.sum(jnp.sin(matmul(x, weight(Conditioned(leaf.base, (), terms)))))

    def hessian(terms, weight):
        return jax.jacfwd(jax.grad(lambda t: loss(t, weight)))(terms)

    both = jax.jit(lambda terms: (hessian(terms, lambda w: w), hessian(terms, fold)))
    assert error(*both(leaf.terms)) < 1e-5


def test_a_scale_of_the_whole_weight_does_not_separate():
    leaf = make((5, 7), scales=[(0,)])
    mixed = Conditioned(leaf.base, (normal(3, 5, 7)[:, :],))
    # As large as the weight, it is built at once, which costs nothing more.
    check((lambda w, x: matmul(x, w), mixed, normal(1, 5)))
    partly = make((3, 5, 7), scales=[(1, 2)])
    with pytest.raises(MaterializationError, match="3x5x7.*dot_general.*contracted"):
        einsum("td,edf->etf", normal(1, 4, 5), partly)


@pytest.mark.parametrize(
    "axis",
    [
        pytest.param(0, marks=pytest.mark.slow),
        1,
        pytest.param(2, marks=pytest.mark.slow),
    ],
)
def test_take(axis):
    leaf = make((5, 7, 3), scales=[(0,), (2,)], ranks=[[(0,), (), (1, 2)], [(2,)]])
    indices = jnp.array([[0, 2], [1, 1]])
    check(
        (lambda w, i: take(w, i, axis), leaf, indices),
        (lambda w, i: take(w, i, axis, mode="clip"), leaf, jnp.array([9, -9])),
    )
    filled = jax.jit(take, static_argnums=2)(leaf, jnp.array([100, 1]), axis)
    out_of_bounds, within = np.moveaxis(filled, axis, 0)
    assert np.isnan(out_of_bounds).all()
    assert not np.isnan(within).any()
    for value in (0, 3.5):
        check(
            (
                lambda w, i, value=value: take(
                    w, i, axis, mode="fill", fill_value=value
                ),
                *(leaf, jnp.array([100, 1, -2])),
            )
        )


CONVS = [
    ((11, 5), (3, 5, 7), ("NHC", "HIO", "NHC"), (2,)),
    ((5, 11, 13), (7, 5, 3, 3), ("NCHW", "OIHW", "NCHW"), (0,)),
    ((11, 13, 5), (3, 2, 5, 7), ("NHWC", "HWIO", "NHWC"), (3,)),
]


@pytest.mark.parametrize("x_shape, w_shape, names, output", CONVS)
def test_conv(x_shape, w_shape, names, output):
    inputs = tuple(i for i in range(len(w_shape)) if i not in output)
    channels = (names[1].index("I"),)
    leaf = make(
        w_shape,
        scales=[channels, output],
        ranks=[[inputs, (), output], [output], [channels], [()]],
    )
    strides = (2,) * (len(w_shape) - 2)

    def run(w, x):
        return conv(x, w, strides, "SAME", dimension_numbers=names)

    check((run, leaf, normal(1, 2, *x_shape)))
    window = make(w_shape, scales=[inputs])
    with pytest.raises(MaterializationError, match="window"):
        run(window, normal(1, 2, *x_shape))


def test_grouped_conv():
    leaf = make((3, 2, 8), scales=[(1,), (2,)])

    def run(w, x):
        names = ("NHC", "HIO", "NHC")
        return conv(x, w, (1,), "SAME", dimension_numbers=names, feature_group_count=4)

    check((run, leaf, normal(1, 2, 11, 8)))
    ranks = [[(0, 1), (), (2,)], [(0, 1)], [(2,)], [()]]
    check((run, make((3, 2, 8), scales=[(2,)], ranks=ranks), normal(1, 2, 11, 8)))


@pytest.mark.parametrize("names", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NHWC")])
def test_depthwise_conv(names):
    """Each channel has a window of its own; two outputs of each, with strides."""
    sizes = {"H": 3, "W": 2, "I": 1, "O": 10}
    shape = [sizes[name] for name in names[1]]
    output, inputs = names[1].index("O"), [names[1].index(n) for n in "HWI"]
    leaf = make(shape, scales=[(output,)], ranks=[[inputs, (), (output,)]])
    x = normal(1, *({"N": 2, "H": 7, "W": 6, "C": 5}[n] for n in names[0]))

    def run(w, x):
        options = {"dimension_numbers": names, "feature_group_count": 5}
        return conv(x, w, (2, 1), "SAME", rhs_dilation=(1, 2), **options)

    check((run, leaf, x))

    def many(gates, x):
        factors = leaf.terms[0]

        def one(gate, x):
            term = factors[0], gate, factors[2]
            return run(Conditioned(leaf.base, leaf.scales, (term,)), x)

        return jax.vmap(one)(gates, x)

    users = 11
    text = jax.jit(many).lower(
        normal(2, users, 1, 1, 1, 1, 2), x[None].repeat(users, 0)
    )
    size = {11 * leaf.size, 11 * 2 * leaf.size}
    shapes = re.findall(r"tensor<([\dx]+)xf32>", text.as_text())
    assert shapes
    assert not size & {int(np.prod([*map(int, s.split("x"))])) for s in shapes}


def test_preferred_element_type():
    leaf = make((5, 7), **BOTH).astype(jnp.bfloat16)
    x = normal(1, 4, 5).astype(jnp.bfloat16)
    assert jax.eval_shape(matmul, x, leaf).dtype == jnp.bfloat16

    @jax.jit
    def run(x, leaf):
        wide = matmul(x, leaf, preferred_element_type=jnp.float32)
        return wide, fold(leaf, jnp.float32)

    wide, folded = run(x, leaf)
    assert wide.dtype == jnp.float32
    exact = np.asarray(x, np.float64) @ np.asarray(folded, np.float64)
    np.testing.assert_allclose(wide, exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", ["scale", "term"])
def test_a_small_modulation_survives_bfloat16(side, kind):
    """Rounding 1 + 1e-3 to bfloat16 gives 1: the effect would be lost."""
    assert jnp.bfloat16(1 + 1e-3) == 1
    w = normal(0, 64, 32).astype(jnp.bfloat16)
    x = normal(1, 128, 64).astype(jnp.bfloat16)
    sizes = (64, 1) if side == "input" else (1, 32)
    delta = 1e-3 * (1 + jnp.abs(normal(2, *sizes)))
    if kind == "scale":
        leaf = Conditioned(w, (delta,))
    else:
        other = normal(3, *((1, 32) if side == "input" else (64, 1)), 1)
        leaf = Conditioned(w, (), ((delta[..., None], other),))

    @jax.jit
    def run(x, w, leaf):
        lossy = w * (1 + delta).astype(jnp.bfloat16)
        return [
            matmul(x, weight, preferred_element_type=jnp.float32)
            for weight in (leaf, w, lossy)
        ]

    modulated, plain, lossy = (np.asarray(y, np.float64) for y in run(x, w, leaf))
    effect = modulated - plain
    base, wide = np.asarray(w, np.float64), np.asarray(x, np.float64)
    if kind == "scale":
        change = base * np.asarray(delta, np.float64)
    else:
        change = np.asarray(delta, np.float64) * np.asarray(other[..., 0], np.float64)
    wanted = wide @ change
    error = np.linalg.norm(effect - wanted) / np.linalg.norm(wanted)
    assert error < 0.05
    if kind == "scale":
        lost = lossy - plain - wanted
        assert np.linalg.norm(lost) / np.linalg.norm(wanted) > 0.5


def test_the_gradient_of_a_weight_is_no_wider_than_the_weight():
    """In float32 it would take twice the memory, and twice the traffic of a mesh."""
    x, w = (normal(i, *shape) for i, shape in enumerate(((7, 4), (4, 5))))
    scale = normal(2, 1, 5)

    def loss(w, x):
        return jnp.sum(matmul(x, Conditioned(w, (scale,))).astype(jnp.float32) ** 2)

    narrow = [a.astype(jnp.bfloat16) for a in (w, x)]
    gradient = jax.grad(loss)
    made = re.findall(r":(\w+)\[4,5\]", str(jax.make_jaxpr(gradient)(*narrow)))
    assert made and set(made) == {"bf16"}

    @jax.jit
    def derivatives(w, x):
        """In both modes, as float32."""
        tangents = jnp.ones_like(w), jnp.ones_like(x)
        _, change = jax.jvp(loss, (w, x), tangents)
        return gradient(w, x).astype(jnp.float32), change

    exact = derivatives(*(a.astype(jnp.float32) for a in narrow))
    assert error(derivatives(*narrow), exact) < 0.02


def test_lowest_terms_are_used():
    """No array as large as users x weight, nor a per-user product of factors."""
    users, tokens, leaf = 11, 13, make((17, 19), **BOTH)
    x = normal(1, users, tokens, 17)
    scales = jnp.stack([leaf.scales[1]] * users)

    def one(scale, x):
        return matmul(x, Conditioned(leaf.base, (leaf.scales[0], scale), leaf.terms))

    text = jax.jit(jax.vmap(one)).lower(scales, x).compile().as_text()
    assert "11,17,19" not in text and "11,19,17" not in text
