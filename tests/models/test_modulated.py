"""Modules modulated by z, against weights that are folded by hand."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow_but

from fsa.conditioning import MaterializationError, low_rank, scale, shift
from fsa.models.encoder import MLP
from fsa.models.modulated import FILM, Modulated

pytestmark = pytest.mark.usefixtures("quick_compile")

D, K, B, F = 3, 5, 2, 7
WIDTHS = (11, 13, 2)
SPECS = {
    "film": FILM,
    "low rank": (
        ("Dense_0/kernel", scale() + low_rank(2)),
        ("Dense_1/kernel", scale("both") + low_rank(2, factors="generated")),
        ("Dense_2/.*", None),
        (".*/bias", shift()),
    ),
}
NAMES = slow_but(("low rank",), SPECS)


def some(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def modulated(spec):
    """A modulated network, and variables that are all random."""
    module = Modulated(MLP(WIDTHS), D, spec)
    shapes = jax.eval_shape(module.init, jax.random.key(0), some(B, F), some(D))
    rng = np.random.default_rng(1)
    return module, jax.tree.map(
        lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes
    )


def by_hand(variables, x, z):
    """The network at one z, with every weight folded."""
    params = variables["params"]

    def part(stored):
        if not isinstance(stored, dict):
            return stored
        return jnp.einsum("d,d...->...", z, stored["kernel"]) + stored["bias"]

    def weight(layer, name):
        w = params["module"][layer][name]
        delta = params["hypernet"]["leaves"].get(layer, {}).get(name, {})
        for stored in delta.get("scales", {}).values():
            w = w + w * part(stored)
        for term in delta.get("terms", {}).values():
            w = w + functools.reduce(jnp.multiply, map(part, term.values())).sum(-1)
        return w

    for n in range(len(WIDTHS)):
        x = x if n == 0 else nn.gelu(x)
        x = x @ weight(f"Dense_{n}", "kernel") + weight(f"Dense_{n}", "bias")
    return x


@pytest.mark.parametrize("spec", NAMES)
def test_equals_weights_folded_by_hand(spec):
    """Values, and gradients of variables, input and latents; many z in one call."""
    module, variables = modulated(SPECS[spec])
    x, z, weights = (
        some(B, F),
        some(K, D, seed=2),
        some(K, B, WIDTHS[-1], seed=3),
    )

    def found(variables, x, z):
        return jax.vmap(lambda z_k: module.apply(variables, x, z_k))(z)

    def expected(variables, x, z):
        return jax.lax.map(lambda z_k: by_hand(variables, x, z_k), z)

    def slopes_and_values(fn):
        def loss(*args):
            values = fn(*args)
            return jnp.sum(weights * values), values

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(variables, x, z)

    (slopes, values), (exact_slopes, exact) = jax.jit(
        lambda: (slopes_and_values(found), slopes_and_values(expected))
    )()
    assert np.ptp(exact, axis=0).min() > 0.1
    np.testing.assert_allclose(values, exact, rtol=1e-4, atol=1e-4)
    for got, wanted in zip(*map(jax.tree.leaves, (slopes, exact_slopes)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("spec", NAMES)
def test_a_fresh_hypernetwork_changes_nothing(spec):
    module, x = Modulated(MLP(WIDTHS), D, SPECS[spec]), some(B, F)

    variables = jax.jit(module.init)(jax.random.key(0), x, some(D))
    alone = {"params": variables["params"]["module"]}

    @jax.jit
    def run(variables, alone):
        modulated = module.apply(variables, x, some(D, seed=4))
        return modulated, MLP(WIDTHS).apply(alone, x)

    np.testing.assert_array_equal(*run(variables, alone))
    # The kernels are those of the module's own initialiser.
    assert np.std(alone["params"]["Dense_0"]["kernel"]) > 0.1


def test_weights_are_shared_and_what_z_does_not_change_is_computed_once():
    module, variables = modulated(FILM)
    fn = jax.vmap(module.apply, in_axes=(None, None, 0))
    lowered = jax.jit(fn).lower(variables, some(B, F), some(K, D))
    dots = re.findall(r"dot_general .* -> tensor<([\dx]+)xf32>", lowered.as_text())
    sizes = [tuple(map(int, dot.split("x"))) for dot in dots]
    assert [size for size in sizes if K not in size] == [(B, WIDTHS[0])]
    arrays = re.findall(r"f32\[([\d,]+)\]", lowered.compile().as_text())
    largest = max(np.prod([int(n) for n in array.split(",")]) for array in arrays)
    # The second kernel is the largest array: K copies of any kernel would be larger.
    assert largest == WIDTHS[0] * WIDTHS[1] < K * F * WIDTHS[0]


class Rounded(nn.Module):
    """A module whose kernel has to be materialised for each z."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (F, 3))
        return x @ jnp.exp(kernel)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Modulated(MLP(WIDTHS), D, ((".*/weight", scale()),)), ValueError, "weight"),
        (Modulated(MLP(WIDTHS), 0), ValueError, "latent_dim"),
        (
            Modulated(Rounded(), D, (("kernel", scale()),)),
            MaterializationError,
            "kernel",
        ),
    ],
)
def test_what_cannot_be_modulated(module, error, message):
    z = some(module.latent_dim)
    with pytest.raises(error, match=message):
        jax.eval_shape(module.init, jax.random.key(0), some(B, F), z)
