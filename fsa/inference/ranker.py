"""`Ranker`: a trained reward model that ranks options for a person, given choices.

```python
import fsa

ranker = fsa.Ranker.load("runs/demo")
ranking = ranker.rank([[0.2], [0.7], [0.8]], chosen=[[0.9]], rejected=[[0.6]])
print(ranking)
```

Shapes: N context choices, O options, F features, K samples of z, D latent dimensions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fsa import latent, losses
from fsa.data.embedding import Embedder
from fsa.episodes import Choices, Options
from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.inference.option_lookup import OptionLookup
from fsa.inference.ranking import Ranking
from fsa.latent import DiagonalGaussian
from fsa.models.reward import RewardModel


@dataclasses.dataclass(frozen=True, eq=False)
class Ranker:
    """A reward model with its variables.

    An option is a vector of F features; the id or the text of an item of the dataset
    that the model was trained on; or any other text, if there is an embedder.

    Attributes:
      model: the Flax module.
      variables: its Flax variables.
      deterministic: whether z is the posterior mean, as in a deterministic training.
      data_path: the dataset that the model was trained on; None for simulated users.
      embedder: what embedded that dataset: the folder of a sentence-transformers
        model, or a function from texts to vectors `[O, F]`.
      num_samples: K.
    """

    model: RewardModel
    variables: Any = dataclasses.field(repr=False)
    deterministic: bool
    data_path: str | None = None
    embedder: Embedder | None = None
    num_samples: int = 256

    @classmethod
    def load(
        cls, workdir: epath.PathLike, *, embedder: Embedder | None = None
    ) -> "Ranker":
        """Loads the best checkpoint of a run of a reward model.

        Args:
          workdir: the run directory.
          embedder: see `Ranker`.

        Raises:
          InputError: if the run has no sound checkpoint, or is of another kind.
        """
        with saved_model.open_best(workdir, saved_model.REWARD_MODEL) as (
            description,
            restore,
        ):
            return cls(
                RewardModel(**description["model"]),
                restore(),
                description["deterministic"],
                description["config"].get("task", {}).get("path"),
                embedder,
            )

    @property
    def num_features(self) -> int:
        """Number of features of an option, F."""
        return self.variables["statistics"]["options"]["mean"].shape[0]

    def rank(
        self,
        options: Sequence[Any] | np.ndarray,
        *,
        chosen: Sequence[Any] | np.ndarray = (),
        rejected: Sequence[Any] | np.ndarray = (),
        seed: int = 0,
    ) -> Ranking:
        """Ranks options for the person who made some choices.

        Args:
          options: O options to rank, at least two.
          chosen: N options that the person chose; N may be 0.
          rejected: the N options that the person rejected for them, in the same order.
          seed: seed of the samples of z.

        Raises:
          InputError: for numbers of options that do not fit, or an option that is
            neither F finite numbers nor a text whose features can be found.
        """
        options, chosen, rejected = map(list, (options, chosen, rejected))
        if len(options) < 2:
            raise InputError("`options`: give at least two")
        context = self._context(chosen, rejected)
        ranked = self._lookup("options", options)
        wins = np.asarray(self._wins(self.variables, context, ranked, seed))
        return Ranking(
            options=options,
            probability=wins.mean(axis=0),
            std=wins.std(axis=0),
            num_choices=len(chosen),
        )

    def posterior(
        self,
        *,
        chosen: Sequence[Any] | np.ndarray = (),
        rejected: Sequence[Any] | np.ndarray = (),
    ) -> DiagonalGaussian:
        """Infers q(z | C) `[D]` of the person who made some choices.

        Args:
          chosen: see `rank`.
          rejected: see `rank`.

        Raises:
          InputError: see `rank`; also for a model without z.
        """
        if not self.model.latent_dim:
            raise InputError("model.latent_dim is 0: this model has no z")
        context = self._context(chosen, rejected)
        return DiagonalGaussian(*map(np.asarray, self._encode(self.variables, context)))

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

    def _context(self, chosen, rejected) -> Choices:
        """Returns N choices, padded to a power of two so that few sizes compile."""
        if len(chosen) != len(rejected):
            raise InputError(
                f"`chosen` has {len(chosen)} options and `rejected` {len(rejected)}; "
                "give one of each for every choice"
            )
        count = len(chosen)
        size = 1 << max(count - 1, 0).bit_length()
        pad = functools.partial(_pad, size=size)
        return Choices(
            jax.tree.map(pad, self._lookup("chosen", chosen)),
            jax.tree.map(pad, self._lookup("rejected", rejected)),
            np.arange(size) < count,
        )

    @functools.cached_property
    def _lookup(self) -> OptionLookup:
        return OptionLookup(self.num_features, self.data_path, self.embedder)

    @functools.cached_property
    def _encode(self):
        return jax.jit(functools.partial(self.model.apply, method=self.model.encode))

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
