"""What conditioning costs, against the same transformer without it.

`python benchmarks/conditioning.py` times 4 layers of width 512 on 16 users x 64 tokens
and writes a table to `--out`. Each round runs every variant and is compared with its
own unconditioned run, so that ratios hold on a noisy machine. `taskset -c 0` in front
of it makes one core of any machine.
"""

import dataclasses
import math
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from absl import app, flags

from fsa.conditioning import bridge, condition, fold, hypernet, low_rank, scale

_ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds of timing.", 1)
_OUT = flags.DEFINE_string(
    "out", "benchmarks/results/conditioning.md", "File of the table."
)

HEADS = 8
LATENT_DIM = 16
PLAIN = "unconditioned"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a run; every user has `tokens` tokens."""

    users: int = 16
    tokens: int = 64
    width: int = 512
    layers: int = 4
    rank: int = 8


def init_params(sizes: Sizes) -> dict:
    """A pre-norm transformer's weights, without embeddings."""
    d = sizes.width
    shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}

    def layer(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape) / math.sqrt(shape[0])
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    keys = jax.random.split(jax.random.key(0), sizes.layers)
    return {f"layer_{n}": layer(key) for n, key in enumerate(keys)}


def transformer(params: dict, x: jax.Array, films: jax.Array | None = None):
    """One user's tokens `[T, width]`; `@` takes arrays and conditioned parameters.

    `films` `[layers, 2, width]` scales and shifts the residual stream after a block.
    """

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    for n, layer in enumerate(params.values()):
        qkv = (norm(x) @ layer["qkv"]).reshape(len(x), 3, HEADS, -1)
        attended = jax.nn.dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        x = x + attended.reshape(x.shape) @ layer["out"]
        x = x + jax.nn.gelu(norm(x) @ layer["up"]) @ layer["down"]
        if films is not None:
            x = x * (1 + films[n, 0]) + films[n, 1]
    return x


def naive(params, x):
    """Builds every user's weights."""
    return transformer(fold(params), x)


def variants(sizes: Sizes) -> dict[str, tuple[Callable, tuple]]:
    """name: (function of (what is learned, params, x), its arguments).

    What is learned is the hypernetwork, the films, or for the plain model nothing but
    the inputs, whose gradient has the same backward pass without that of weights.
    """
    params = init_params(sizes)
    x = jax.random.normal(jax.random.key(1), (sizes.users, sizes.tokens, sizes.width))
    z = jax.random.normal(jax.random.key(2), (sizes.users, LATENT_DIM))
    films = jnp.full((sizes.users, sizes.layers, 2, sizes.width), 0.01)

    def conditioned(run, modulation):
        init, modulate = hypernet([(".*", modulation)], LATENT_DIM)
        # Not the identity, so that nothing can be optimised away.
        hyper = jax.tree.map(lambda a: a + 0.01, init(jax.random.key(3), params))

        def apply(hyper, params, x):
            def row(z, x):
                return run(condition(params, modulate(hyper, z)), x)

            return jax.vmap(row)(z, x)

        return apply, (hyper, params, x)

    def plain(gain, params, x):
        return jax.vmap(transformer, (None, 0))(params, x * gain)

    def residual(films, params, x):
        return jax.vmap(lambda f, x: transformer(params, x, f))(films, x)

    both = scale() + low_rank(sizes.rank)
    bridged = bridge(transformer, strict=True)
    return {
        PLAIN: (plain, (jnp.ones(()), params, x)),
        "residual FiLM": (residual, (films, params, x)),
        "scale, explicit": conditioned(transformer, scale()),
        "scale, bridge": conditioned(bridged, scale()),
        "scale, materialised": conditioned(naive, scale()),
        "scale + rank, explicit": conditioned(transformer, both),
        "scale + rank, bridge": conditioned(bridged, both),
        "scale + rank, materialised": conditioned(naive, both),
    }


def copies(text: str, sizes: Sizes) -> int:
    """Bytes of the largest array that holds some weight for each user, 0 if none does.

    An array counts if its axes are the users and those of a weight, in any order.
    """
    d = sizes.width
    weights = ((d, 3 * d), (d, d), (d, 4 * d))
    wanted = {tuple(sorted((sizes.users, *shape))) for shape in weights}
    found = {
        tuple(sorted(n for n in map(int, dims.split(",")) if n > 1))
        for dims in re.findall(r"f32\[([\d,]+)\]", text)
    }
    return max((4 * math.prod(shape) for shape in found & wanted), default=0)


def measure(sizes: Sizes) -> dict[str, dict]:
    """name: seconds and ratios (medians over rounds), memory, FLOPs and copies."""
    programs, result = {}, {}
    for name, (fn, arguments) in variants(sizes).items():

        def loss(*arguments, fn=fn):
            return jnp.sum(fn(*arguments) ** 2)

        forward = jax.jit(fn).lower(*arguments).compile()
        gradient = jax.jit(jax.grad(loss)).lower(*arguments).compile()
        programs[name] = {"forward": (forward, arguments)}
        programs[name]["gradient"] = (gradient, arguments)
        result[name] = {
            "memory": forward.memory_analysis().temp_size_in_bytes,
            "flops": forward.cost_analysis()["flops"],
            "copies": max(copies(p.as_text(), sizes) for p in (forward, gradient)),
        }
    for kind in ("forward", "gradient"):
        rounds = []
        for _ in range(_ROUNDS.value):
            seconds = {}
            for name in programs:
                program, arguments = programs[name][kind]
                # Once for nothing: memory that another program just gave back to
                # the system costs the next one that asks for it.
                jax.block_until_ready(program(*arguments))
                begin = time.perf_counter()
                jax.block_until_ready(program(*arguments))
                seconds[name] = time.perf_counter() - begin
            rounds.append(seconds)
        for name in programs:
            ratios = [r[name] / r[PLAIN] for r in rounds]
            result[name][kind] = statistics.median(r[name] for r in rounds)
            result[name][kind + " ratio"] = statistics.median(ratios)
    return result


def to_markdown(result: dict[str, dict]) -> str:
    """One row a variant; ratios are to the unconditioned model."""
    lines = [
        "| | forward, ms | ratio | gradient, ms | ratio | temporary memory, MB "
        "| GFLOP | users x weight, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in result.items():
        lines.append(
            f"| {name} | {1e3 * r['forward']:.0f} | {r['forward ratio']:.2f} "
            f"| {1e3 * r['gradient']:.0f} | {r['gradient ratio']:.2f} "
            f"| {r['memory'] / 1e6:.1f} | {r['flops'] / 1e9:.2f} "
            f"| {r['copies'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def main(_):
    """Prints and saves the table."""
    sizes = Sizes()
    head = f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {sizes}"
    text = f"{head}\n\n{to_markdown(measure(sizes))}\n"
    print(text)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)


if __name__ == "__main__":
    app.run(main)
