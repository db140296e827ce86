"""Measures accuracy, calibration and speed of the posterior of z.

`taskset -c 0 python benchmarks/posterior.py` draws people from a prior, infers z by
Laplace's approximation and by sweeps of expectation propagation, and writes tables to
`--out`: errors against importance sampling, the share of true values in intervals, and
milliseconds of one core.

Shapes: U people, N observations, M targets, K draws, D latent dimensions.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.scipy.special import logsumexp, ndtr
from scipy.special import ndtri
from scipy.stats import qmc

from fsa.latent import Mixture, Observations, laplace, mixture, refine

SIZES = (1, 3, 5, 10, 30)
SWEEPS = (0, 1, 2, 3, 4, 8)
TARGETS = 20


def two_components(dim: int) -> Mixture:
    """Returns a prior of two components of different weights, means and widths."""
    apart = jnp.linspace(1.0, -0.5, dim)
    return Mixture(
        jnp.log(jnp.array([0.3, 0.7])),
        jnp.stack([apart, -0.4 * apart]),
        jnp.log(jnp.stack([jnp.full(dim, 0.4), jnp.linspace(0.7, 1.2, dim)])),
    )


def person(key: jax.Array, prior: Mixture, n: int, scale: float):
    """Draws a person's z, n choices and targets `[M, D]`, features of one scale.

    Returns:
      z `[D]`, observations `[N]` and the features of the targets `[M, D]`.
    """
    keys = jax.random.split(key, 4)
    dim = prior.mean.shape[-1]
    z = mixture.sample(mixture.of_prior(prior), keys[0], 1)[0]
    features = scale * jax.random.normal(keys[1], (n, dim))
    wins = features @ z + jax.random.logistic(keys[2], (n,)) > 0
    chosen = jnp.where(wins[:, None], features, -features)
    targets = scale * jax.random.normal(keys[3], (TARGETS, dim))
    return z, Observations.of(chosen, jnp.zeros(n), jnp.ones(n)), targets


def infer(observed: Observations, prior: Mixture, num_sweeps: int) -> mixture.Posterior:
    """Returns Laplace's approximation, or what it is after sweeps."""
    q = laplace(observed, prior)
    return refine(q, observed, prior, num_sweeps=num_sweeps) if num_sweeps else q


def reference(q: mixture.Posterior, observed, prior, targets, noise):
    """Integrates over z by importance sampling from a widened posterior.

    Args:
      q: a posterior of C components to draw from.
      observed: `[N]`.
      prior: over `[D]`.
      targets: `[M, D]`.
      noise: `[K, D]`, standard normal.

    Returns:
      mean `[D]` of z, probabilities `[M]` of the targets, and the log-evidence.
    """

    z, log_weight = weighted_draws(q, observed, prior, noise)
    total = logsumexp(log_weight)
    p = jnp.exp(log_weight - total)
    return p @ z, p @ jax.nn.sigmoid(z @ targets.T), total - jnp.log(len(z))


def weighted_draws(q: mixture.Posterior, observed, prior, noise):
    """Draws z `[C K, D]` from a widened posterior; returns it with log-weights."""
    moved = jnp.einsum("kd,cde->cke", 1.25 * noise, q.inverse)
    z = (q.component_mean[:, None] + moved).reshape(-1, noise.shape[-1])
    components = len(q.log_weight)
    wide = q._replace(
        cholesky=q.cholesky / 1.25,
        log_weight=jnp.full(components, -jnp.log(components)),
    )
    log_prior = jax.vmap(lambda z: mixture.log_prob(mixture.of_prior(prior), z))(z)
    log_q = jax.vmap(lambda z: mixture.log_prob(wide, z))(z)
    return z, jax.vmap(observed.log_prob)(z) + log_prior - log_q


def errors(n: int, scale: float, people: int, draws: int, dim: int = 3) -> np.ndarray:
    """Returns errors of Laplace's approximation, of sweeps, and of the reference.

    Returns:
      `[methods, 3]`: the root mean square errors of the mean of z in standard
      deviations of the posterior, of probabilities and of log-evidence. Methods are
      `SWEEPS`; the last is another reference, so what the reference errs.
    """
    prior = two_components(dim)
    noises = [
        jnp.asarray(ndtri(np.clip(qmc.Sobol(dim, rng=s).random(draws), 1e-6, 1 - 1e-6)))
        for s in range(2)
    ]

    @jax.jit
    def one(key):
        _, observed, targets = person(key, prior, n, scale)
        found = [infer(observed, prior, num_sweeps) for num_sweeps in SWEEPS]
        true, other = (
            reference(found[-1], observed, prior, targets, e.astype(jnp.float32))
            for e in noises
        )
        values = [
            (
                q.mean,
                jnp.exp(mixture.predict(q, targets, jnp.zeros(TARGETS))),
                q.log_evidence,
            )
            for q in found
        ]
        std = found[-1].std
        return jnp.stack(
            [
                jnp.stack(
                    [
                        jnp.mean(((m - true[0]) / std) ** 2),
                        jnp.mean((p - true[1]) ** 2),
                        (e - true[2]) ** 2,
                    ]
                )
                for m, p, e in [*values, other]
            ]
        )

    keys = jax.random.split(jax.random.key(n), people)
    return np.sqrt(np.mean([np.asarray(one(key)) for key in keys], axis=0))


def ranks_and_coverage(
    n: int, num_sweeps: int, people: int, *, scale: float = 1.0, dim: int = 3
) -> tuple[np.ndarray, float]:
    """Simulation-based calibration (Talts et al. 2018) on people from the prior.

    Returns:
      The posterior probability `[U, D + 1]` that each dimension of z, and a random
      linear function of it, is below its true value: the rank among infinitely many
      draws, uniform if the posterior is right; and the share of true differences
      between rewards that 90% intervals hold, 10 for each person.
    """
    prior = two_components(dim)

    def one(key):
        z, observed, targets = person(key, prior, n, scale)
        q = infer(observed, prior, num_sweeps)
        functions = jnp.concatenate([jnp.eye(dim), targets[:1]])
        mean, variance = mixture.utility(q, functions, jnp.zeros(dim + 1))
        below = ndtr((functions @ z - mean) / jnp.sqrt(variance))
        pairs = targets[: 2 * (TARGETS // 2)].reshape(-1, 2, dim)
        differences = pairs[:, 0] - pairs[:, 1]
        low, high = mixture.quantiles(
            q, differences, jnp.zeros(len(differences)), jnp.array([0.05, 0.95])
        )
        true = differences @ z
        return jnp.exp(q.log_weight) @ below, jnp.mean((low <= true) & (true <= high))

    keys = jax.random.split(jax.random.key(1000 + n), people)
    ranks, covered = jax.jit(jax.vmap(one))(keys)
    return np.asarray(ranks), float(jnp.mean(covered))


def ranks_and_exact_ones(
    n: int, people: int, draws: int, *, scale: float = 1.0, dim: int = 3
) -> np.ndarray:
    """Ranks as `ranks_and_coverage` has them, beside those of importance sampling.

    Chance moves both alike, so that their difference is what a method errs.

    Returns:
      `[methods, U, D + 1]`, of Laplace's approximation, of 2 and of 3 sweeps, and of
      draws from a widened posterior.
    """
    prior = two_components(dim)
    noise = ndtri(np.clip(qmc.Sobol(dim, rng=0).random(draws), 1e-6, 1 - 1e-6))
    noise = jnp.asarray(noise, jnp.float32)

    def one(key):
        true, observed, targets = person(key, prior, n, scale)
        functions = jnp.concatenate([jnp.eye(dim), targets[:1]])
        found = []
        for num_sweeps in (0, 2, 3):
            q = infer(observed, prior, num_sweeps)
            mean, variance = mixture.utility(q, functions, jnp.zeros(dim + 1))
            below = ndtr((functions @ true - mean) / jnp.sqrt(variance))
            found.append(jnp.exp(q.log_weight) @ below)
        z, log_weight = weighted_draws(q, observed, prior, noise)
        weight = jax.nn.softmax(log_weight)
        return jnp.stack([*found, weight @ (z @ functions.T < functions @ true)])

    keys = jax.random.split(jax.random.key(1000 + n), people)
    found = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))(keys)
    return np.moveaxis(np.asarray(found), 1, 0)


def largest_difference(ranks: np.ndarray, others: np.ndarray) -> float:
    """Returns how far the distributions of two sets of ranks `[U]` are apart."""
    both = np.sort(np.concatenate([ranks, others]))
    below = (np.searchsorted(np.sort(x), both, "right") for x in (ranks, others))
    return float(np.max(np.abs(np.subtract(*below))) / len(ranks))


def largest_deviation(ranks: np.ndarray) -> float:
    """Returns how far the distribution of some `[U]` is from uniform on [0, 1]."""
    ordered = np.sort(ranks)
    steps = np.arange(len(ranks) + 1) / len(ranks)
    return float(max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1])))


def milliseconds(
    n: int, people: int, num_sweeps: int, *, dim: int = 8, rounds: int = 9
) -> tuple[float, float]:
    """Returns wall and processor milliseconds a person, the least over rounds."""
    prior = Mixture(jnp.zeros(1), jnp.zeros((1, dim)), jnp.zeros((1, dim)))
    keys = jax.random.split(jax.random.key(0), people)
    _, observed, _ = jax.vmap(lambda key: person(key, prior, n, 1.0))(keys)
    program = jax.jit(jax.vmap(lambda observed: infer(observed, prior, num_sweeps)))
    jax.block_until_ready(program(observed))
    wall, used = [], []
    for _ in range(rounds):
        begin = time.perf_counter(), time.process_time()
        for _ in range(max(1, 32 // people)):
            jax.block_until_ready(program(observed))
        times = max(1, 32 // people) * people
        wall.append((time.perf_counter() - begin[0]) / times)
        used.append((time.process_time() - begin[1]) / times)
    return 1000 * min(wall), 1000 * min(used)


def steps_needed(n: int, people: int, *, dim: int = 8) -> tuple[float, float]:
    """Returns mean Newton steps to the mode of n choices: from the prior, and warm.

    The warm start is the mode of the first n - 1.
    """
    prior = Mixture(jnp.zeros(1), jnp.zeros((1, dim)), jnp.zeros((1, dim)))

    @jax.jit
    @jax.vmap
    def one(key):
        _, observed, _ = person(key, prior, n, 1.0)
        weight = observed.weight.at[-1].set(0)
        before = laplace(observed._replace(weight=weight), prior).component_mean
        return jnp.stack(
            [
                jnp.argmax(
                    jnp.stack(
                        [
                            laplace(observed, prior, num_steps=k, start=start).converged
                            for k in range(12)
                        ]
                    )
                )
                for start in (None, before)
            ]
        )

    found = one(jax.random.split(jax.random.key(n), people))
    return tuple(np.mean(np.asarray(found), axis=0))


def accuracy_tables(people: int, draws: int) -> list[str]:
    """Returns the tables of errors."""
    lines = []
    for scale in (1.0, 4.0):
        lines += [
            f"Features of scale {scale:g}:",
            "",
            "| n | "
            + " | ".join(["Laplace", *(f"{s} sweeps" for s in SWEEPS[1:])])
            + " | reference |",
            "|---" * (len(SWEEPS) + 2) + "|",
        ]
        for n in SIZES:
            found = errors(n, scale, people, draws)
            cells = [f"{m:.4f} {p:.4f} {e:.4f}" for m, p, e in found]
            lines.append(f"| {n} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
        lines.append("")
    return lines


def calibration_tables(people: int) -> list[str]:
    """Returns the tables of ranks and of coverage."""
    lines = []
    for scale in (1.0, 4.0):
        lines += [
            f"Features of scale {scale:g}:",
            "",
            "| n | exact: deviation "
            "| Laplace: deviation | from exact | coverage, % "
            "| 2 sweeps: deviation | from exact | coverage, % "
            "| 3 sweeps: deviation | from exact | coverage, % |",
            "|---" * 11 + "|",
        ]
        for n in (0, *SIZES):
            *methods, exact = ranks_and_exact_ones(n, people, 1024, scale=scale)
            cells = [f"{max(map(largest_deviation, exact.T)):.3f}"]
            for num_sweeps, ranks in zip((0, 2, 3), methods, strict=True):
                _, covered = ranks_and_coverage(n, num_sweeps, people, scale=scale)
                apart = max(map(largest_difference, ranks.T, exact.T))
                worst = max(map(largest_deviation, ranks.T))
                cells += [f"{worst:.3f}", f"{apart:.3f}", f"{100 * covered:.1f}"]
            lines.append(f"| {n} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
        lines.append("")
    return lines


def speed_table() -> list[str]:
    """Returns the table of milliseconds."""
    lines = [
        "| people at once | n | Laplace, wall (processor) | 2 sweeps | 3 sweeps |",
        "|---|---|---|---|---|",
    ]
    for people in (1, 256):
        for n in (10, 100):
            cells = []
            for num_sweeps in (0, 2, 3):
                wall, used = milliseconds(n, people, num_sweeps)
                cells.append(f"{wall:.3f} ({used:.3f})")
            lines.append(f"| {people} | {n} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    return [*lines, ""]


def warm_table(people: int) -> list[str]:
    """Returns the table of Newton steps."""
    lines = ["| n | steps from the prior | from the mode of n - 1 |", "|---|---|---|"]
    for n in SIZES[1:]:
        cold, warm = steps_needed(n, people)
        lines.append(f"| {n} | {cold:.2f} | {warm:.2f} |")
    return [*lines, ""]


def main(_):
    """Writes the tables."""
    people, draws = flags.FLAGS.people, flags.FLAGS.draws
    lines = [
        "# How exact, calibrated and fast the posterior of z is",
        "",
        f"jax {jax.__version__}, {jax.default_backend()}, one core, people drawn from "
        "the prior.",
        "",
        "## Errors",
        "",
        f"Against importance sampling with 2 x {draws:,} draws, {people} people, D = "
        "3, C = 2. Each cell: root mean square error of the mean of z in standard "
        "deviations of the posterior, of the probability of a choice, and of the "
        "log-evidence in nats. The last column is what two references differ by.",
        "",
        *accuracy_tables(people, draws),
        "## Calibration",
        "",
        f"{20 * people:,} people, the same prior. The deviation is the largest between "
        "the distribution of ranks and the uniform one, the worst of 3 dimensions of z "
        f"and a random linear function; chance alone stays below "
        f"{1.63 / np.sqrt(20 * people):.3f} with 99% for each. From exact: the largest "
        "difference from the distribution of the exact ranks of the same people, by "
        "importance sampling, which chance moves alike. Coverage is that of 90% "
        f"intervals of {200 * people:,} differences between rewards.",
        "",
        *calibration_tables(20 * people),
        "## Speed",
        "",
        "Milliseconds a person, wall (processor), compiled, the least of 9 rounds; D = "
        "8, C = 1.",
        "",
        *speed_table(),
        "One more choice, D = 8, C = 1:",
        "",
        *warm_table(people),
    ]
    pathlib.Path(flags.FLAGS.out).write_text("\n".join(lines))


if __name__ == "__main__":
    flags.DEFINE_integer("people", 100, "People of the tables of errors.")
    flags.DEFINE_integer("draws", 2**14, "Draws of importance sampling, for each C.")
    flags.DEFINE_string(
        "out",
        str(pathlib.Path(__file__).parent / "results" / "posterior.md"),
        "File of the tables.",
    )
    app.run(main)
