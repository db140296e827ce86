"""One LoRA for each user by four tools: error, processor time, memory, lines.

    python -m benchmarks.conditioning_rivals

The work: a batch of users, each with low-rank factors of their own for every kernel of
the same multilayer perceptron, forward and with the gradient of all factors. Calls of
the tools take turns, and the median of each one's processor time is printed as
Markdown. quax and qwix are skipped if they are not installed. What a tool needs to run
the model is in the function that bears its name, whose lines of code are counted.

Shapes: U users; T tokens; D width; R rank.
"""

import importlib
import inspect
import time

import jax
import jax.numpy as jnp
import numpy as np

from fsa.conditioning import Conditioned, bridge

USERS, TOKENS, WIDTH, RANK, LAYERS, ROUNDS = 8, 32, 384, 4, 4, 15


def mlp(weights, x):
    """Multiplies `[T, D]` by each of the weights `[D, D]`."""
    for w in weights:
        x = jnp.tanh(x @ w)
    return x


def fsa(weights, factors, x):
    """This library, on factors that a hypernetwork would give."""
    leaves = [
        Conditioned(w, (), ((a[:, None], b.T[None]),))
        for w, (a, b) in zip(weights, factors, strict=True)
    ]
    return bridge(mlp, strict=True)(leaves, x)


def vmap(weights, factors, x):
    """Naive vmap over folded weights."""
    folded = [w + a @ b for w, (a, b) in zip(weights, factors, strict=True)]
    return mlp(folded, x)


def quax(weights, factors, x):
    """quax's LoRA, whose factors are put into place."""
    import equinox as eqx
    import quax
    from quax.examples.lora import LoraArray

    leaves = []
    for w, pair in zip(weights, factors, strict=True):
        leaf = LoraArray(w, rank=RANK, stop_gradient=False, key=jax.random.key(0))
        leaves.append(eqx.tree_at(lambda leaf: (leaf.a, leaf.b), leaf, pair))
    return quax.quaxify(mlp)(leaves, x)


def qwix(weights, factors, x):
    """qwix's LoRA of an NNX model, whose weights and factors are put into place."""
    from flax import nnx
    from qwix import LoraProvider, apply_lora_to_model

    def build():
        layer = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=nnx.Rngs(0))
        provider = LoraProvider(module_path=".*", rank=RANK, alpha=RANK)
        return apply_lora_to_model(layer, provider, jnp.ones((TOKENS, WIDTH)))

    graph, shapes = nnx.split(nnx.eval_shape(build))
    layers = []
    for w, (a, b) in zip(weights, factors, strict=True):
        named = {"kernel": w, "kernel_lora_a": a, "kernel_lora_b": b}
        state = jax.tree_util.tree_map_with_path(
            lambda path, leaf, named=named: named.get(path[0].key, leaf), shapes
        )
        layers.append(nnx.merge(graph, state))
    for layer in layers:
        x = jnp.tanh(layer(x))
    return x


TOOLS = {"fsa": fsa, "naive vmap": vmap, "quax": quax, "qwix": qwix}


def programs(tool):
    """The forward pass and the gradient of all factors, for all users, compiled."""
    every = jax.vmap(tool, (None, 0, 0))

    def loss(factors, weights, x):
        return (every(weights, factors, x) ** 2).mean()

    gradient = jax.grad(loss)
    return every, lambda weights, factors, x: gradient(factors, weights, x)


def arguments():
    """Weights, factors of each user, and examples."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / WIDTH**0.5, jnp.float32)

    weights = [normal(WIDTH, WIDTH) for _ in range(LAYERS)]
    pairs = (normal(USERS, WIDTH, RANK), normal(USERS, RANK, WIDTH))
    return weights, [pairs] * LAYERS, normal(USERS, TOKENS, WIDTH)


def seconds(compiled, inputs):
    """Processor time of one call."""
    start = time.process_time()
    jax.block_until_ready(compiled(*inputs))
    return time.process_time() - start


def main():
    """Prints the table."""
    inputs = arguments()
    tools = {
        name: tool
        for name, tool in TOOLS.items()
        if name not in ("quax", "qwix") or importlib.util.find_spec(name)
    }
    compiled = {
        name: [jax.jit(p).lower(*inputs).compile() for p in programs(tool)]
        for name, tool in tools.items()
    }
    wanted = compiled["naive vmap"][0](*inputs)
    times = {name: ([], []) for name in tools}
    for _ in range(ROUNDS):
        for name, pair in compiled.items():
            for program, found in zip(pair, times[name], strict=True):
                found.append(seconds(program, inputs))
    print("| | lines | error | forward, ms | gradient, ms | temporary MB |")
    print("|-|-|-|-|-|-|")
    for name, pair in compiled.items():
        error = jnp.abs(pair[0](*inputs) - wanted).max() / jnp.abs(wanted).max()
        forward, gradient = (1e3 * np.median(found) for found in times[name])
        memory = [p.memory_analysis().temp_size_in_bytes / 1e6 for p in pair]
        lines = len(inspect.getsource(tools[name]).splitlines()) - 2
        print(
            f"| {name} | {lines} | {error:.0e} | {forward:.1f} | {gradient:.1f} | "
            f"{memory[0]:.1f} / {memory[1]:.1f} |"
        )


if __name__ == "__main__":
    main()
