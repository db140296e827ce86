"""`Predictor`: a trained reward model that ranks options for a person, given choices.

```python
from fsa.inference.predictor import Predictor

predictor = Predictor.load("runs/demo")
ranked = predictor.rank(chosen=[[0.9]], rejected=[[0.6]], options=[[0.2], [0.7], [0.8]])
print(ranked.order, ranked.probability, ranked.std)
```

Shapes: N context choices, O options, F features, K samples of z.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fsa import latent, losses
from fsa.episodes import Choices, Options
from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.models.reward import RewardModel


class Ranking(NamedTuple):
    """A ranking of O options, and its uncertainty.

    Attributes:
      order: `[O]`, indices of the options from the most to the least wanted.
      probability: `[O]`, probability that an option is chosen over another one,
        averaged over the others and over z.
      std: `[O]`, standard deviation of that probability over z. It shows what is not
        known about the person, and not the randomness of a single choice.
    """

    order: np.ndarray
    probability: np.ndarray
    std: np.ndarray


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A reward model with its variables.

    Attributes:
      model: the Flax module.
      variables: its Flax variables.
      deterministic: whether z is the posterior mean, as in a deterministic training.
      num_samples: K.
    """

    model: RewardModel
    variables: Any
    deterministic: bool
    num_samples: int = 256

    @classmethod
    def load(cls, workdir: epath.PathLike) -> "Predictor":
        """Loads the best checkpoint of a run of a reward model.

        Raises:
          InputError: if the run has no sound checkpoint, or is of another kind.
        """
        with saved_model.open_best(workdir, saved_model.REWARD_MODEL) as (
            description,
            restore,
        ):
            model = RewardModel(**description["model"])
            return cls(model, restore(), description["deterministic"])

    @property
    def num_features(self) -> int:
        """F."""
        return self.variables["statistics"]["options"]["mean"].shape[0]

    def rank(
        self,
        *,
        chosen,
        rejected,
        options,
        chosen_item=None,
        rejected_item=None,
        option_item=None,
        seed: int = 0,
    ) -> Ranking:
        """Ranks options for the person who made these choices.

        Args:
          chosen: `[N, F]` features of chosen options; N may be 0.
          rejected: `[N, F]` features of rejected options.
          options: `[O, F]` features of at least two options to rank.
          chosen_item: `[N]`, indices of items of the training dataset, -1 (the default)
            where unknown.
          rejected_item: `[N]`, likewise.
          option_item: `[O]`, likewise.
          seed: seed of the samples of z.

        Raises:
          InputError: for other shapes, or numbers that are not finite.
        """
        chosen = self._options("chosen", chosen, chosen_item)
        rejected = self._options("rejected", rejected, rejected_item)
        options = self._options("options", options, option_item)
        if len(chosen.item) != len(rejected.item):
            raise InputError(
                f"`chosen` has {len(chosen.item)} options and `rejected` "
                f"{len(rejected.item)}; give one of each for every choice"
            )
        if len(options.item) < 2:
            raise InputError("`options`: give at least two")
        # Padded to a power of two, so that many context sizes share a few programs.
        count = len(chosen.item)
        size = 1 << max(count - 1, 0).bit_length()
        pad = functools.partial(_pad, size=size)
        context = Choices(
            jax.tree.map(pad, chosen),
            jax.tree.map(pad, rejected),
            np.arange(size) < count,
        )
        wins = np.asarray(self._wins(self.variables, context, options, seed))
        probability = wins.mean(axis=0)
        return Ranking(np.argsort(-probability), probability, wins.std(axis=0))

    def mean_rewards(self, context: Choices, options: Options) -> jax.Array:
        """Averages rewards `[O]` over z ~ q(z | context); the context may be padded."""

        def rewards(z):
            return self.model.apply(
                self.variables, options, z, method=self.model.reward
            )[0]

        z = self._values_of_z(self.variables, context, jax.random.key(0))
        return jax.vmap(rewards)(z).mean(axis=0)

    def _values_of_z(self, variables, context: Choices, key: jax.Array) -> jax.Array:
        """Returns the values of z that a prediction averages over, `[K, D]`."""
        return latent.mean_or_samples(
            self.model.apply(variables, context, method=self.model.encode),
            key,
            self.num_samples,
            deterministic=self.deterministic,
        )

    def _options(self, name, features, item) -> Options:
        features = np.asarray(features, np.float32)
        if not features.size:
            features = features.reshape(0, self.num_features)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise InputError(
                f"`{name}`: features of shape {features.shape}; give "
                f"{self.num_features} numbers for each option"
            )
        if not np.isfinite(features).all():
            raise InputError(f"`{name}`: features must be finite numbers")
        item = np.full(len(features), -1) if item is None else np.asarray(item)
        if item.shape != features.shape[:1]:
            raise InputError(
                f"`{name}`: {len(features)} options and {item.size} items; give one "
                "item for each option, -1 where unknown"
            )
        # A model without item embeddings ignores items, whatever they are.
        num_items = self.model.num_items or np.inf
        if len(item) and not -1 <= item.min() <= item.max() < num_items:
            raise InputError(
                f"`{name}`: items must be -1, or indices below {num_items} of items of "
                "the training dataset"
            )
        return Options(features, item.astype(np.int32))

    @functools.cached_property
    def _wins(self):
        """Computes each option's mean probability to win, for each z, `[K, O]`."""
        model = self.model

        @jax.jit
        def wins(variables, context, options, seed):
            def at(z):
                mean, std = model.apply(variables, options, z, method=model.reward)
                if std is None:
                    log_p = losses.btl_log_prob(mean[:, None], mean[None])
                else:
                    log_p = losses.dpl_log_prob(
                        mean[:, None], std[:, None], mean[None], std[None]
                    )
                others = 1 - jnp.eye(len(mean))
                return jnp.sum(jnp.exp(log_p) * others, axis=1) / (len(mean) - 1)

            z = self._values_of_z(variables, context, jax.random.key(seed))
            return jax.vmap(at)(z)

        return wins


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))
