"""The replay of people's answers in `benchmarks/replay.py`."""

import jax
import numpy as np
import pytest

from benchmarks import replay
from fsa.episodes import Choices, Episode, Options
from fsa.inference.ranker import Ranker
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward import RewardModel

pytestmark = pytest.mark.usefixtures("quick_compile")

F, POOL, TARGETS = 3, 6, 4


def choices(count, seed):
    sides = np.random.default_rng(seed).normal(size=(2, count, F)).astype(np.float32)
    none = np.full(count, -1, np.int32)
    return Choices(*(Options(x, none) for x in sides), np.ones(count, bool))


MODELS = {
    "linear": LinearRewardModel(hidden=8, latent_dim=2, num_steps=3, num_sweeps=0),
    "np-btl": RewardModel(hidden=8, latent_dim=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "np-btl"])
def test_ways_differ_until_everything_is_asked(name):
    model = MODELS[name]
    pool, target = choices(POOL, 0), choices(TARGETS, 1)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), Episode(pool, target, np.int32(0))
    )
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), shapes["params"]
    )
    statistics = {"mean": np.zeros(F, np.float32), "std": np.ones(F, np.float32)}
    variables = {"params": params, "statistics": {"options": statistics}}
    ranker = Ranker(model, variables, False, num_samples=2000)
    found = {
        way: jax.jit(replay.make_replay(ranker, way, POOL))(
            pool, target, jax.random.key(3)
        )
        for way in replay.WAYS
    }
    for way, log_p in found.items():
        assert log_p.shape == (POOL + 1, TARGETS) and (log_p < 0).all()
        # Nothing is known at first, and in the end all of the pool.
        atol = 1e-3 if name == "linear" else 0.1
        for n in (0, POOL):
            np.testing.assert_allclose(
                log_p[n], found[replay.RANDOM][n], atol=atol, err_msg=way
            )
    if name == "linear":
        told = ranker.questions(
            np.concatenate([pool.chosen.features, pool.rejected.features])
        )
        own = [told.pairs.tolist().index([i, i + POOL]) for i in range(POOL)]
        first = int(np.argmax(told.gain[own]))
        one = pool._replace(mask=np.arange(POOL) == first)
        wanted = model.apply(variables, Episode(one, target, np.int32(0)))
        np.testing.assert_allclose(found[replay.ASKED][1], wanted, atol=1e-3)


def test_how_many_random_questions_are_worth_a_value():
    curve = np.array([50.0, 60.0, 64.0, 66.0])
    assert replay.worth(curve, 62.0) == "1.5"
    assert replay.worth(curve, 50.0) == "0"
    assert replay.worth(curve, 67.0) == "> 3"


def test_people_are_averaged_first():
    values = np.array([[1.0], [0.0], [0.5]])
    assert replay.by_person(values, np.array([7, 7, 9])).tolist() == [[0.5], [0.5]]
