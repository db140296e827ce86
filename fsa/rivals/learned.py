"""Methods that learn by gradient descent: all are trained alike, with one budget.

A method that derives from `Learned` says what its variables and its loss are. Three
learning rates are tried; after each quarter of the steps, validation people are
predicted, and the best of these 12 averaged models is kept.

Shapes: R learning rates, B people of a batch, N context choices, M target choices.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsa.data.tasks import order
from fsa.data.tasks.task import TRAIN, VALID
from fsa.episodes import Episode
from fsa.errors import InputError
from fsa.rivals import scoring
from fsa.rivals.method import Fitted, TrainingPeople
from fsa.training.step import TrainState, init_state, make_optimizer, make_step

RATES = (3e-4, 1e-3, 3e-3)
_CHECKS = 4


@dataclasses.dataclass(frozen=True)
class Learned:
    """The part of a method that trains it.

    Attributes:
      steps: updates at each learning rate.
      batch_size: B.
      hidden: width of every layer.
      weight_decay: of matrices.
      average_decay: decay of the average of parameters that is used.
      warmup_steps: at most; a tenth of the steps if that is fewer.
      rates: learning rates to try.
      valid_episodes: episodes of each validation person.
    """

    steps: int = 600
    batch_size: int = 64
    hidden: int = 64
    weight_decay: float = 0.1
    average_decay: float = 0.99
    warmup_steps: int = 100
    rates: tuple[float, ...] = RATES
    valid_episodes: int = 4

    needs_items = False

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Makes the variables: {"params": what is trained, others: what is not}."""
        raise NotImplementedError

    def loss(
        self, variables: Any, user: jax.Array, episode: Episode, key: jax.Array
    ) -> jax.Array:
        """Computes the loss of one training person, a scalar.

        Args:
          variables: as `init` makes them.
          user: int32 scalar, number of the person in the split `train`.
          episode: some of their choices.
          key: a JAX random key.
        """
        raise NotImplementedError

    def over_people(self, losses: jax.Array) -> jax.Array:
        """Joins the losses of the people of a batch, `[B]`."""
        return losses.mean()

    def finish(self, variables: Any) -> Sequence[Any]:
        """Returns, from trained variables, the values of which one may be kept.

        They differ in how a new person is adapted to; validation people choose.
        """
        return (variables,)

    def fit(self, people: TrainingPeople, key: jax.Array) -> Fitted:
        """Trains at every learning rate; keeps what predicts validation people best.

        Raises:
          InputError: if no learning rate gave a finite prediction.
        """
        init_key, key = jax.random.split(key)
        predict = scoring.predictor(
            self,
            people.task,
            VALID,
            people.num_context,
            episodes_per_user=self.valid_episodes,
        )
        variables = self.init(people, init_key)
        rates = jnp.asarray(self.rates)
        states = jax.vmap(lambda rate: init_state(variables, self._optimizer(rate)))(
            rates
        )
        chunk = max(1, self.steps // _CHECKS)
        run = _runner(self, people.task)
        best = Fitted(None, valid_nll=float("inf"))
        for first in range(0, chunk * _CHECKS, chunk):
            users = _users(people, first, chunk, self.batch_size)
            states = run(rates, states, users, people.task.constants, key)
            for i, rate in enumerate(self.rates):
                variables = jax.tree.map(lambda x, i=i: x[i], states.variables)
                for values in self.finish(variables):
                    nll = scoring.mean_nll(predict, values)
                    if nll < best.valid_nll:
                        best = Fitted(values, rate, nll)
        if best.values is None:
            raise InputError("no learning rate gave finite predictions; lower `rates`")
        return best

    def _optimizer(self, rate: Any) -> optax.GradientTransformation:
        optimizer = make_optimizer(
            learning_rate=1.0,
            steps=self.steps,
            warmup_steps=min(self.warmup_steps, self.steps // 10),
            weight_decay=self.weight_decay,
        )
        # Behind it, so that one program serves all learning rates.
        return optax.chain(optimizer, optax.scale(rate))


def _users(people: TrainingPeople, first: int, steps: int, batch_size: int):
    users = people.task.users(TRAIN)
    visited = order.visited(users, first * batch_size, steps * batch_size, 0)
    return jnp.asarray(visited.reshape(steps, batch_size), jnp.int32)


def _runner(method: Learned, task):
    """Compiles some steps of all trainings `[R]` as one program.

    They see the same episodes, which are drawn once.
    """

    def loss_fn(variables, batch, key):
        constants, users = batch

        def one(user, key):
            draw_key, loss_key = jax.random.split(key)
            episode = task.train_episode(constants, user, draw_key)
            return method.loss(variables, user, episode, loss_key)

        losses = jax.vmap(one)(users, jax.random.split(key, len(users)))
        return method.over_people(losses), {}

    @jax.jit
    def run(rates, states: TrainState, users, constants, key):
        def body(states, now):
            step, users = now
            # Of no training's own step, so that vmap leaves the draws as they are.
            own_key = jax.random.fold_in(key, step)

            def one(rate, state):
                update = make_step(
                    loss_fn,
                    method._optimizer(rate),
                    average_decay=method.average_decay,
                )
                return update(state, (constants, users), own_key)[0]

            return jax.vmap(one)(rates, states), None

        steps = states.step[0] + jnp.arange(len(users))
        return jax.lax.scan(body, states, (steps, users))[0]

    return run


def num_training_users(people: TrainingPeople) -> int:
    """Returns the number of users of the split `train`, whether trained on or not."""
    return len(people.task.data.users[TRAIN].names)
