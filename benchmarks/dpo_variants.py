"""One language model, one batch of choices, and the DPO steps that `dpo.py` compares.

Shapes: U users, P pairs of a user, T tokens; 2 is (chosen, rejected).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.language_model import LATENT_DIM, OUTPUTS, RandomLanguageModel
from fsa.data.tasks.pairs import PairBatch
from fsa.episodes import Choices, Episode, Options
from fsa.language.token_table import PaddedTokens
from fsa.language.transformer import Transformer, with_biases
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.policy import INFERRED, NONE, Policy, response_log_probs, shifted
from fsa.models.reward import RewardModel
from fsa.training.policy_loss import make_loss
from fsa.training.step import init_state, make_optimizer, make_step

BETA, NLL_WEIGHT, LEARNING_RATE = 1.0, 2.0, 1e-3


@dataclasses.dataclass(frozen=True)
class Sizes(RandomLanguageModel):
    """Sizes of the model, of a batch and of the conditioning."""

    users: int = 16
    pairs: int = 2
    context: int = 10
    prompt: int = 32
    response: int = 32
    rank: int = 8

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences of a step."""
        return 2 * self.users * self.pairs * (self.prompt + self.response)

    @property
    def plain(self) -> str:
        """The name of the step that others are compared with: DPO, no conditioning."""
        return f"DPO, lora({self.rank})"

    @property
    def film(self) -> str:
        """The name of the step with a scale and a shift for each user."""
        return "NP-DPO, scale + shift"

    @property
    def low_rank(self) -> str:
        """The name of the step with the rank of LoRA for each user."""
        return f"NP-DPO, low_rank({self.rank})"

    @property
    def given(self) -> str:
        """The name of the step whose z a frozen reward model gives, by Bayes' rule."""
        return f"{self.low_rank}, z given"

    @property
    def computed(self) -> str:
        """The name of the same step that computes the reference's log-probs itself."""
        return f"{self.low_rank}, reference in the step"


def make_batch(
    sizes: Sizes, model: Transformer, variables: Any, lengths: np.ndarray | None = None
) -> PairBatch:
    """Makes random choices and tokens, with the model's own log-probs as reference.

    Args:
      sizes: the sizes.
      model: the language model.
      variables: its variables.
      lengths: `[U, P, 3]`, tokens of prompt, chosen and rejected; by default those of
        `sizes`. Sequences are padded to the longest.
    """
    rng = np.random.default_rng(0)
    users, pairs = sizes.users, sizes.pairs
    if lengths is None:
        lengths = np.full((users, pairs, 3), sizes.response)
        lengths[..., 0] = sizes.prompt

    def choices(number):
        def options():
            features = rng.standard_normal((users, number, model.width))
            return Options(features.astype(np.float32), np.full((users, number), -1))

        return Choices(options(), options(), np.ones((users, number), bool))

    start = np.repeat(lengths[..., :1], 2, axis=-1).astype(np.int32)
    stop = (start + lengths[..., 1:]).astype(np.int32)
    shape = (users, pairs, 1, stop.max())
    prompt = rng.integers(0, model.vocab_size, shape)
    response = rng.integers(0, model.vocab_size, (users, pairs, 2, stop.max()))
    at = np.arange(stop.max())
    tokens = np.where(at < start[..., None], prompt, response)
    tokens = np.where(at < stop[..., None], tokens, 0).astype(np.int32)
    responses = PaddedTokens(tokens, start, stop)
    score = jax.jit(lambda v, r: log_probs(model, v, r))
    return PairBatch(
        step=np.zeros(users, np.int32),
        position=np.arange(users, dtype=np.int32),
        user=np.arange(users, dtype=np.int32),
        episode=Episode(
            choices(sizes.context), choices(pairs), np.zeros(users, np.int32)
        ),
        responses=responses,
        reference=jax.device_get(score(variables, responses)),
    )


def log_probs(model: Transformer, variables: Any, responses: PaddedTokens) -> jax.Array:
    """Computes log pi(response | prompt) of responses `[U, P, 2]`."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), responses)
    return response_log_probs(model, variables, flat).reshape(responses.start.shape)


def make_step_of(
    sizes: Sizes,
    model: Transformer,
    base: Any,
    batch: Any,
    latent: str,
    modulation: str,
    computed: bool = False,
    given: bool = False,
) -> tuple[Callable, tuple]:
    """Makes (step, its arguments) of a policy on one batch.

    Args:
      sizes: the sizes.
      model: the language model.
      base: its variables.
      batch: the batch, padded or packed.
      latent: where z comes from.
      modulation: of the outputs of attention and MLP.
      computed: whether the step computes the reference's log-probs of a padded batch.
      given: whether a frozen reward model gives z.
    """
    modulations = tuple((name, modulation) for name in OUTPUTS)
    model, base = with_biases(model, base, shifted(modulations))
    reward_model = (LinearRewardModel if given else RewardModel)(latent_dim=LATENT_DIM)
    policy = Policy(
        model, reward_model, modulations, latent=latent, frozen_reward=given
    )
    loss = make_loss(policy, beta=BETA, nll_weight=NLL_WEIGHT)

    def computing(variables, batch, key):
        constants, pairs = batch
        reference = log_probs(model, constants["base"], pairs.responses)
        pairs = pairs._replace(reference=reference)
        return loss(variables, (constants, pairs), key)

    optimizer = make_optimizer(learning_rate=LEARNING_RATE, steps=1000, warmup_steps=20)
    step = make_step(computing if computed else loss, optimizer)

    @jax.jit
    def init(base):
        variables = policy.init(jax.random.key(1), base, model.width)
        return init_state(variables, optimizer)

    return step, (init(base), ({"base": base}, batch), jax.random.key(2))


def make_steps(sizes: Sizes) -> dict[str, Callable[[], tuple[Callable, tuple]]]:
    """Returns name -> function that makes (step, its arguments).

    Nothing takes memory before its function is called.
    """

    @functools.cache
    def shared():
        model, base = sizes.make()
        return model, base, make_batch(sizes, model, base)

    def make(*options, **more):
        return make_step_of(sizes, *shared(), *options, **more)

    rank = sizes.rank
    return {
        sizes.plain: lambda: make(NONE, f"lora({rank})"),
        sizes.film: lambda: make(INFERRED, "scale + shift"),
        sizes.low_rank: lambda: make(INFERRED, f"low_rank({rank})"),
        sizes.given: lambda: make(INFERRED, f"low_rank({rank})", given=True),
        sizes.computed: lambda: make(INFERRED, f"low_rank({rank})", computed=True),
    }
