"""Policies: a language model whose parameters are modulated by a person's latent.

One `Policy` covers NP-DPO and its baselines, by where z comes from:

| latent   | z                                      | policy                          |
|----------|----------------------------------------|---------------------------------|
| inferred | q(z | C), from the person's choices    | NP-DPO (Kobalczyk et al. 2024)  |
| group    | one-hot of the person's labelled group | DPO for each group, the ceiling |
| none     | the same for everybody                 | DPO (Rafailov et al. 2023)      |

The reference is the language model itself, unconditioned. Functions take one
unbatched user; callers vmap. Shapes: B sequences, M pairs, T tokens, D latent
dimensions, L layers, W width.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fsa.conditioning import Modulation, bridge, condition, hypernet, parse
from fsa.conditioning.hypernet import Head
from fsa.episodes import Choices, Episode, Options
from fsa.language import transformer
from fsa.language.layers import MAPS
from fsa.language.token_table import Padded
from fsa.language.transformer import Transformer
from fsa.latent import DiagonalGaussian
from fsa.models import reward
from fsa.models.reward import RewardModel
from fsa.parallel.sharding import FSDP, TENSOR, Rules, replicated

# Modulations have the axes of their map, 1 where they are broadcast: the width is split
# over `fsdp`, the map's other side over both.
_HEADS = "attention/(query|key|value)/kernel"
_PARTS: Rules = (
    (rf"{_HEADS}/(terms/\d/2|scales)", P(None, None, TENSOR, FSDP)),
    (r"attention/out/kernel/terms/\d/0", P(None, TENSOR, FSDP)),
    (r"mlp/(gate|up)/kernel/terms/\d/0", P(None, FSDP)),
    (r"mlp/(gate|up)/kernel/(terms/\d/2|scales)", P(None, None, (TENSOR, FSDP))),
    (r"mlp/down/kernel/terms/\d/0", P(None, (TENSOR, FSDP))),
    (r"mlp/down/kernel/(terms/\d/2|scales)", P(None, None, FSDP)),
    *transformer.SHARDING_RULES,
)
# Where parameters lie on a mesh, see `fsa.parallel.sharding`. What makes an array from z has one
# axis more, which comes first.
SHARDING_RULES: Rules = (
    *((f"hyper/.*{path}.*/kernel$", P(None, *spec)) for path, spec in _PARTS),
    *_PARTS,
    *reward.SHARDING_RULES,
)

INFERRED, GROUP, NONE = LATENTS = ("inferred", "group", "none")

# Maps whose outputs are heads, and the axes of their kernels and biases.
_TO_HEADS = ("attention/query", "attention/key", "attention/value")
_HEAD_KERNEL = {"output": (-2, -1), "input": (1,)}
_HEAD_BIAS = {"output": (-2, -1), "input": ()}


def spec_of(modulations: Sequence[tuple[str, str]]) -> list[tuple[str, Modulation]]:
    """The specification of what z does to a `Transformer`, for `hypernet`.

    Args:
      modulations: (linear map of a layer, modulation) as texts, such as
        ("mlp/down", "scale + shift"), see `fsa.conditioning.parse`. Scales and low
        ranks modulate the map's kernel; shifts its bias, so that scale and shift
        together are FiLM of its output (Perez et al. 2018).

    Raises:
      ValueError: for a name that is no map of a layer, and as `parse` does.
    """
    spec = []
    for name, text in modulations:
        if name not in MAPS:
            raise ValueError(f"{name!r} is none of {', '.join(MAPS)}")
        modulation = parse(text)
        kernel = dataclasses.replace(modulation, shifts=())
        if kernel.scales or kernel.ranks:
            axes = _HEAD_KERNEL if name in _TO_HEADS else {}
            kernel = kernel.layout(**axes, stacked=True)
            spec.append((f"params/layers/{name}/kernel", kernel))
        if modulation.shifts:
            shift = Modulation(shifts=modulation.shifts)
            axes = _HEAD_BIAS if name in _TO_HEADS else {}
            spec.append(
                (f"params/layers/{name}/bias", shift.layout(**axes, stacked=True))
            )
    return spec


def shifted(modulations: Sequence[tuple[str, str]]) -> list[str]:
    """The maps whose biases z shifts, which a language model must have.

    `fsa.language.transformer.with_biases` gives them to one that has not.

    Args:
      modulations: see `spec_of`.
    """
    return [name for name, text in modulations if parse(text).shifts]


@dataclasses.dataclass(frozen=True)
class Policy:
    """A steerable language model.

    Attributes:
      language_model: a `Transformer` with biases on the maps that are `shifted`.
      reward_model: its encoder infers z, its head predicts choices.
      modulations: see `spec_of`.
      latent: "inferred", "group" or "none".
      num_groups: of users, for latent "group".
      trunk: widths of the hypernetwork's hidden layers.
      normalize: whether only the direction of z counts.
      train_base: whether the language model's own parameters are trained as well; they
        are then kept in float32, and computed with in the language model's dtype.
    """

    language_model: Transformer
    reward_model: RewardModel
    modulations: tuple[tuple[str, str], ...]
    latent: str = INFERRED
    num_groups: int = 1
    trunk: tuple[int, ...] = ()
    normalize: bool = False
    train_base: bool = False

    @property
    def latent_dim(self) -> int:
        """D."""
        dims = {INFERRED: self.reward_model.latent_dim, GROUP: self.num_groups, NONE: 1}
        return dims[self.latent]

    @functools.cached_property
    def hypernet(self):
        """z to modulations."""
        return hypernet(
            spec_of(self.modulations),
            self.latent_dim,
            trunk=self.trunk,
            normalize=self.normalize,
        )

    def init(self, key: jax.Array, base: Any, num_features: int) -> dict[str, Any]:
        """Fresh variables, with which every z leaves the language model as it is.

        Args:
          key: a JAX random key.
          base: the language model's variables.
          num_features: of an option's embedding.

        Returns:
          Flax collections: "params", which are trained, and those of the reward model.
        """
        reward_key, hyper_key = jax.random.split(key)
        option = Options(jnp.zeros((1, num_features)), jnp.full(1, -1))
        choice = Choices(option, option, jnp.ones(1, bool))
        episode = Episode(choice, choice, jnp.int32(0))
        variables = dict(jax.jit(self.reward_model.init)(reward_key, episode))
        params = {
            "reward": variables.pop("params"),
            "hyper": jax.jit(self.hypernet.init)(hyper_key, base),
        }
        if self.train_base:
            # Masters: updates are smaller than what bfloat16 resolves.
            params["base"] = jax.tree.map(
                lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32)), base
            )
        return {"params": params, **variables}

    def gathered(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables, where they lie on a mesh as a program should use them.

        The reward model and what turns z into modulations are gathered, once for all
        users; the language model and low ranks are, layer by layer.
        """
        params = dict(variables["params"])
        params["reward"] = replicated(params["reward"])
        params["hyper"] = jax.tree.map(
            lambda part: replicated(part) if isinstance(part, Head) else part,
            params["hyper"],
            is_leaf=lambda part: isinstance(part, Head),
        )
        return {**variables, "params": params}

    def reward_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The reward model's own Flax variables."""
        return {**variables, "params": variables["params"]["reward"]}

    def encode(self, variables, context: Choices) -> DiagonalGaussian:
        """q(z | C) of one user's choices `[N]`, over `[D]`; for latent "inferred"."""
        return self.reward_model.apply(
            self.reward_variables(variables), context, method=RewardModel.encode
        )

    def latent_of(self, variables, context: Choices, group: jax.Array) -> jax.Array:
        """z `[D]` of one user: the posterior mean where it is inferred."""
        if self.latent == GROUP:
            return jax.nn.one_hot(group, self.num_groups)
        if self.latent == NONE:
            return jnp.ones(1)
        return self.encode(variables, context).mean

    def condition(self, variables, base: Any, z: jax.Array) -> Any:
        """The language model's variables at z `[D]`, with lazy leaves."""
        params = variables["params"]
        modulations = self.hypernet.apply(params["hyper"], z)
        return condition(params["base"] if self.train_base else base, modulations)

    def log_probs(self, variables: Any, responses: Padded) -> jax.Array:
        """log pi(response | prompt) in nats, summed over the response's tokens.

        Args:
          variables: the language model's, conditioned or plain.
          responses: of shape `[B]`, tokens `[B, T]`.

        Returns:
          `[B]` float32.
        """
        return response_log_probs(self.language_model, variables, responses)

    def pair_log_probs(
        self, variables, base: Any, z: jax.Array, responses: Padded
    ) -> jax.Array:
        """`log_probs` at z `[D]` of pairs of responses `[M, 2]`, `[M, 2]` in nats."""
        conditioned = self.condition(variables, base, z)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), responses)
        return self.log_probs(conditioned, flat).reshape(responses.start.shape)


def response_log_probs(
    model: Transformer, variables: Any, responses: Padded
) -> jax.Array:
    """As `Policy.log_probs`, for any language model."""

    def per_token(variables, tokens, mask):
        return model.apply(variables, tokens, mask=mask, method=model.log_probs)

    log_probs = bridge(per_token, strict=True)(
        variables, responses.tokens, responses.is_real
    )
    return jnp.sum(log_probs, axis=-1, where=responses.is_response)
