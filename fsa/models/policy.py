"""Policies: a language model whose parameters are modulated by a user's latent z.

One `Policy` covers NP-DPO and its baselines. They differ in where z comes from:

| latent   | z                                    | policy                             |
|----------|--------------------------------------|------------------------------------|
| inferred | the posterior given their choices    | NP-DPO (Kobalczyk et al. 2024)     |
| group    | one-hot of the user's labelled group | DPO for each group, an upper bound |
| none     | the same for every user              | DPO (Rafailov et al. 2023)         |

z is inferred by `Policy.encode`, which the reward model does. It is trained together
with the policy, or was trained before and stays as it is (`frozen_reward`). The
reference policy is the language model itself, unconditioned.

Shapes: B sequences, M pairs, N context choices, T tokens, D latent dimensions.
Functions take one unbatched user; callers vmap.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fsa.conditioning import Modulation, bridge, condition, hypernet, parse
from fsa.conditioning.hypernet import Head, user_axes
from fsa.conditioning.spec import GATES
from fsa.episodes import Choices, Episode, Options
from fsa.language import transformer
from fsa.language.layers import MAPS
from fsa.language.token_table import PaddedTokens, RowTokens
from fsa.language.transformer import Transformer
from fsa.latent import DiagonalGaussian, Posterior
from fsa.models import reward
from fsa.models.reward_models import AnyRewardModel
from fsa.parallel.sharding import FSDP, TENSOR, Rules, replicated

# Modulations have the axes of their map, of size 1 where they are broadcast. The width
# of the model is sharded over `fsdp`, the map's other axis over `tensor` and `fsdp`.
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
# How parameters are sharded over a mesh, see `fsa.parallel.sharding`. A kernel that
# maps z to a modulation has the modulation's axes and one more, which comes first.
SHARDING_RULES: Rules = (
    *((f"hyper/.*{path}.*/kernel$", P(None, *spec)) for path, spec in _PARTS),
    *_PARTS,
    *reward.SHARDING_RULES,
)

INFERRED, GROUP, NONE = LATENTS = ("inferred", "group", "none")

# Linear maps whose outputs are heads, and the axes of their kernels and biases.
_TO_HEADS = ("attention/query", "attention/key", "attention/value")
_HEAD_KERNEL = {"output": (-2, -1), "input": (1,)}
_HEAD_BIAS = {"output": (-2, -1), "input": ()}


def spec_of(modulations: Sequence[tuple[str, str]]) -> list[tuple[str, Modulation]]:
    """Returns the `hypernet` specification of how z modulates a `Transformer`.

    Args:
      modulations: pairs (linear map of a layer, modulation) as texts, such as
        ("mlp/down", "scale + shift"), see `fsa.conditioning.parse`. Scales and low
        ranks modulate the map's kernel and shifts its bias, so that scale and shift
        together are FiLM of its output (Perez et al. 2018).

    Raises:
      ValueError: if a name is no linear map of a layer, or `parse` refuses a text.
    """
    spec = []
    for name, text in modulations:
        if name not in MAPS:
            raise ValueError(
                f"`modulations` name the map {name!r}, which is none of "
                f"{', '.join(MAPS)}"
            )
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
    """Returns the maps whose biases z shifts, which the language model must have.

    `fsa.language.transformer.with_biases` adds them to a model that has none.

    Args:
      modulations: see `spec_of`.
    """
    return [name for name, text in modulations if parse(text).shifts]


@dataclasses.dataclass(frozen=True)
class Policy:
    """A language model that z steers, and the reward model that infers z.

    Attributes:
      language_model: a `Transformer` with biases on the maps that are `shifted`.
      reward_model: it infers z, and predicts choices.
      modulations: see `spec_of`.
      latent: "inferred", "group" or "none".
      num_groups: number of groups of users, for latent "group".
      trunk: widths of the hypernetwork's hidden layers.
      normalize: whether z is divided by its norm, so that only its direction counts.
      zero: what of a low rank starts at zero, see `hypernet`; it matters to `init`.
      train_base: whether the language model's own parameters are trained as well. They
        are then stored in float32 and cast to the language model's dtype for
        computation.
      frozen_reward: whether the reward model was trained before. Its variables are then
        the collection "reward", which no step changes.
    """

    language_model: Transformer
    reward_model: AnyRewardModel
    modulations: tuple[tuple[str, str], ...]
    latent: str = INFERRED
    num_groups: int = 1
    trunk: tuple[int, ...] = ()
    normalize: bool = False
    zero: str = GATES
    train_base: bool = False
    frozen_reward: bool = False

    @property
    def latent_dim(self) -> int:
        """D, the number of dimensions of z."""
        dims = {INFERRED: self.reward_model.latent_dim, GROUP: self.num_groups, NONE: 1}
        return dims[self.latent]

    @functools.cached_property
    def hypernet(self):
        """The (init, apply) pair that maps z to modulations."""
        return hypernet(
            spec_of(self.modulations),
            self.latent_dim,
            trunk=self.trunk,
            normalize=self.normalize,
            zero=self.zero,
        )

    def init(self, key: jax.Array, base: Any, num_features: int) -> dict[str, Any]:
        """Initialises variables with which no z changes the language model yet.

        Args:
          key: a JAX random key.
          base: the language model's variables.
          num_features: number of features of an option.

        Returns:
          Flax collections: "params", which are trained, and the other collections of
          the reward model; if it is frozen, the collection "reward" of its variables.
        """
        reward_key, hyper_key = jax.random.split(key)
        option = Options(jnp.zeros((1, num_features)), jnp.full(1, -1))
        choice = Choices(option, option, jnp.ones(1, bool))
        episode = Episode(choice, choice, jnp.int32(0))
        variables = dict(jax.jit(self.reward_model.init)(reward_key, episode))
        params = {"hyper": jax.jit(self.hypernet.init)(hyper_key, base)}
        if self.frozen_reward:
            variables = {"reward": variables}
        else:
            params["reward"] = variables.pop("params")
        if self.train_base:
            # Stored in float32, because bfloat16 would round most updates to nothing.
            params["base"] = jax.tree.map(
                lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32)), base
            )
        return {"params": params, **variables}

    def gathered(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the variables with the small parts replicated, if there is a mesh.

        These are the reward model and the heads that map z to modulations, which all
        users of a batch need at once. The language model and the factors of low ranks
        stay sharded and are gathered layer by layer.
        """
        params = dict(variables["params"])
        if self.frozen_reward:
            variables = {**variables, "reward": replicated(variables["reward"])}
        else:
            params["reward"] = replicated(params["reward"])
        params["hyper"] = self.gathered_heads(params["hyper"])
        return {**variables, "params": params}

    def gathered_heads(self, hyper: Any) -> Any:
        """Returns the hypernetwork's parameters as `gathered` does."""
        return jax.tree.map(
            lambda part: replicated(part) if isinstance(part, Head) else part,
            hyper,
            is_leaf=lambda part: isinstance(part, Head),
        )

    def reward_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the Flax variables of the reward model."""
        if self.frozen_reward:
            return variables["reward"]
        return {**variables, "params": variables["params"]["reward"]}

    def encode(self, variables, context: Choices) -> DiagonalGaussian | Posterior:
        """Infers q(z | C) over `[D]` from one user's choices `[N]`.

        For latent "inferred" only.
        """
        return self.reward_model.apply(
            self.reward_variables(variables), context, method="encode"
        )

    def reward(self, variables, options: Options, z: jax.Array) -> jax.Array:
        """Computes the rewards `[M]` of options at z `[D]` by the reward model."""
        return self.reward_model.apply(
            self.reward_variables(variables), options, z, method="reward"
        )[0]

    def latent_of(self, variables, context: Choices, group: jax.Array) -> jax.Array:
        """Returns z `[D]` of one user; for latent "inferred" the mean of q(z | C)."""
        if self.latent == GROUP:
            return jax.nn.one_hot(group, self.num_groups)
        if self.latent == NONE:
            return jnp.ones(1)
        return self.encode(variables, context).mean

    def condition(self, variables, base: Any, z: jax.Array) -> Any:
        """Returns the language model's variables conditioned on z `[D]`, lazily."""
        params = variables["params"]
        modulations = self.hypernet.apply(params["hyper"], z)
        return condition(params["base"] if self.train_base else base, modulations)

    def log_probs(self, variables: Any, responses: PaddedTokens) -> jax.Array:
        """Computes log pi(response | prompt), summed over the response's tokens.

        Args:
          variables: the language model's variables, conditioned or not.
          responses: `[B]`, tokens `[B, T]`.

        Returns:
          `[B]` float32, in nats.
        """
        return response_log_probs(self.language_model, variables, responses)

    def pair_log_probs(
        self, variables, base: Any, z: jax.Array, responses: PaddedTokens
    ) -> jax.Array:
        """Computes `log_probs` of pairs of responses `[M, 2]` at z `[D]`, `[M, 2]`."""
        conditioned = self.condition(variables, base, z)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), responses)
        return self.log_probs(conditioned, flat).reshape(responses.start.shape)

    def row_log_probs(
        self, variables: Any, base: Any, z: jax.Array, row: RowTokens
    ) -> jax.Array:
        """Computes `log_probs` of the M pairs of one row, each at its own z.

        Args:
          variables: the policy's variables.
          base: the language model's variables.
          z: `[M, D]`.
          row: the row, whose texts are `[M, 2]`.

        Returns:
          `[M, 2]` float32, in nats; 0 for places without a text.
        """
        params, hyper = variables["params"], variables["params"]["hyper"]
        modulations = jax.vmap(self.hypernet.apply, (None, 0), user_axes(hyper))(
            hyper, z
        )
        text = row.text
        conditioned = condition(
            params["base"] if self.train_base else base,
            modulations,
            segments=text // 2,
        )

        def per_token(variables, tokens, begin, wanted):
            method = self.language_model.row_log_probs
            return self.language_model.apply(
                variables, tokens, begin, wanted, method=method
            )

        found = bridge(per_token, strict=True)(
            conditioned, row.tokens, row.begin, row.is_response
        )
        sums = jax.ops.segment_sum(found, text, row.start.size)
        return sums.reshape(row.start.shape)


def response_log_probs(
    model: Transformer, variables: Any, responses: PaddedTokens
) -> jax.Array:
    """Computes `Policy.log_probs` of a language model that need not be a policy's."""

    def per_token(variables, tokens, mask):
        return model.apply(variables, tokens, mask=mask, method=model.log_probs)

    log_probs = bridge(per_token, strict=True)(
        variables, responses.tokens, responses.is_real
    )
    return jnp.sum(log_probs, axis=-1, where=responses.is_response)
