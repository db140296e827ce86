"""A trained reward model in use: a new person's choices in, ranked options out.

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
from fsa.models.reward import RewardModel
from fsa.training.checkpoint import VARIABLES, Checkpoints


class Ranking(NamedTuple):
    """Options in the order given, and how they rank.

    Attributes:
      order: `[O]`, positions from the most to the least wanted.
      probability: `[O]`, of being chosen over another of the options, averaged over
        the others and over z.
      std: `[O]`, standard deviation of that probability over z: what is not yet known
        about the person, not the luck of a single choice.
    """

    order: np.ndarray
    probability: np.ndarray
    std: np.ndarray


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A reward model with its variables.

    Attributes:
      model: the Flax module.
      variables: its variables.
      deterministic: whether z is the posterior mean, for models trained that way.
      num_samples: K.
    """

    model: RewardModel
    variables: Any
    deterministic: bool
    num_samples: int = 256

    @classmethod
    def load(cls, workdir: epath.PathLike) -> "Predictor":
        """Loads the best checkpoint of a run.

        Raises:
          InputError: if the run has no sound checkpoint.
        """
        checkpoints = Checkpoints(
            epath.Path(workdir).absolute() / "checkpoints", read_only=True
        )
        step = checkpoints.best_step
        if step is None:
            raise InputError(f"{workdir}: no sound checkpoint there; train it first")
        meta = checkpoints.meta(step)
        like = {VARIABLES: checkpoints.shapes(step, VARIABLES)}
        variables = checkpoints.restore(step, like)[VARIABLES]
        checkpoints.close()
        return cls(RewardModel(**meta["model"]), variables, meta["deterministic"])

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
          chosen: `[N, F]` features; N may be 0.
          rejected: `[N, F]`.
          options: `[O, F]`, at least two.
          chosen_item: `[N]`, indices of the items in the training set, -1 (the default)
            where unknown.
          rejected_item: `[N]`, likewise.
          option_item: `[O]`, likewise.
          seed: of the samples of z.

        Raises:
          InputError: for other shapes, or numbers that are not finite.
        """
        chosen = self._options("chosen", chosen, chosen_item)
        rejected = self._options("rejected", rejected, rejected_item)
        options = self._options("options", options, option_item)
        if len(chosen.item) != len(rejected.item):
            raise InputError("chosen and rejected differ in number; give one of each")
        if len(options.item) < 2:
            raise InputError("options: give at least two to compare")
        # Padded to a power of two, so that sets of many sizes share a few programs.
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
        """r(option, z) averaged over z ~ q(z | C), `[O]`; sets may be padded."""
        q = self.model.apply(self.variables, context, method=self.model.encode)
        samples = latent.sample(q, jax.random.key(0), self.num_samples)
        z = q.mean[None] if self.deterministic else samples

        def at(z_k):
            return self.model.apply(
                self.variables, options, z_k, method=self.model.reward
            )[0]

        return jax.vmap(at)(z).mean(axis=0)

    def _options(self, name, features, item) -> Options:
        features = np.asarray(features, np.float32)
        if not features.size:
            features = features.reshape(0, self.num_features)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise InputError(
                f"{name}: features of shape {features.shape}; give one row of "
                f"{self.num_features} numbers for each"
            )
        if not np.isfinite(features).all():
            raise InputError(f"{name}: features must be finite numbers")
        item = np.full(len(features), -1) if item is None else np.asarray(item)
        if item.shape != features.shape[:1]:
            raise InputError(
                f"{name}: {len(features)} features and {item.size} items; give one "
                "item for each, -1 where unknown"
            )
        if len(item) and not -1 <= item.min() <= item.max() < self._largest_item:
            raise InputError(
                f"{name}: items must be -1 or a row of the training set's items"
            )
        return Options(features, item.astype(np.int32))

    @property
    def _largest_item(self) -> float:
        """What indices stay below; a model without item embeddings ignores them."""
        return self.model.num_items or np.inf

    @functools.cached_property
    def _wins(self):
        """[K, O]: at each sample of z, mean probability of beating another option."""
        model = self.model

        @jax.jit
        def wins(variables, context, options, seed):
            q = model.apply(variables, context, method=model.encode)
            samples = latent.sample(q, jax.random.key(seed), self.num_samples)
            z = q.mean[None] if self.deterministic else samples

            def at(z_k):
                mean, std = model.apply(variables, options, z_k, method=model.reward)
                if std is None:
                    log_p = losses.btl_log_prob(mean[:, None], mean[None])
                else:
                    log_p = losses.dpl_log_prob(
                        mean[:, None], std[:, None], mean[None], std[None]
                    )
                others = 1 - jnp.eye(len(mean))
                return jnp.sum(jnp.exp(log_p) * others, axis=1) / (len(mean) - 1)

            return jax.vmap(at)(z)

        return wins


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))
