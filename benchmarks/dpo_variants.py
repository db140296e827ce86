"""One language model, one batch of choices, and the DPO steps that `dpo.py` compares.

Shapes: P pairs of all users, T tokens; 2 is (chosen, rejected).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsa.data.pairs import PairBatch
from fsa.data.responses import Padded
from fsa.episodes import Choices, Episode, Options
from fsa.models import hf_config
from fsa.models.policy import INFERRED, NONE, Policy, response_log_probs, shifted
from fsa.models.reward import RewardModel
from fsa.models.transformer import Transformer, with_biases
from fsa.training.policy import make_loss
from fsa.training.step import init_state, make_optimizer, make_step

# Of what attention and MLP put out.
OUTPUTS = ("attention/out", "mlp/down")
BETA, NLL_WEIGHT, LEARNING_RATE = 1.0, 2.0, 1e-3
LATENT_DIM = 16

# As in the config.json of these models.
_SHARED = {"hidden_act": "silu", "tie_word_embeddings": True}
MODELS = {
    "smollm2-135m": {
        **_SHARED,
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
    },
    "qwen2.5-1.5b": {
        **_SHARED,
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    },
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a run.

    `model` is one of `MODELS`; without one it is a Llama of `width`, `layers` and
    `vocab`. `remat` is a policy of `jax.checkpoint_policies`.
    """

    users: int = 16
    pairs: int = 2
    context: int = 10
    prompt: int = 32
    response: int = 32
    width: int = 512
    layers: int = 4
    vocab: int = 4096
    rank: int = 8
    dtype: str = "float32"
    model: str = ""
    remat: str = ""

    @property
    def tokens(self) -> int:
        """Of all sequences of a step."""
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
    def computed(self) -> str:
        """The name of the same step that computes the reference's log-probs itself."""
        return f"{self.low_rank}, reference in the step"


def describe(sizes: Sizes) -> dict[str, Any]:
    """The config of the language model."""
    if sizes.model:
        return MODELS[sizes.model]
    return hf_config.llama(
        vocab_size=sizes.vocab,
        width=sizes.width,
        num_layers=sizes.layers,
        num_heads=8,
        num_kv_heads=4,
        head_dim=sizes.width // 8,
        mlp_width=sizes.width * 8 // 3,
    )


def make_model(sizes: Sizes) -> tuple[Transformer, Any]:
    """(model, variables with random weights)."""
    model = Transformer(
        **hf_config.arguments(describe(sizes)),
        remat=sizes.remat or None,
        dtype=sizes.dtype,
        param_dtype=sizes.dtype,
    )
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))


def make_batch(sizes: Sizes, model: Transformer, variables: Any) -> PairBatch:
    """Random choices and tokens, with the model's own log-probs as the reference."""
    rng = np.random.default_rng(0)
    users, pairs = sizes.users, sizes.pairs

    def choices(number):
        def options():
            features = rng.standard_normal((users, number, model.width))
            return Options(features.astype(np.float32), np.full((users, number), -1))

        return Choices(options(), options(), np.ones((users, number), bool))

    shape = (users, pairs, 2)
    prompt = rng.integers(0, model.vocab_size, (users, pairs, 1, sizes.prompt))
    response = rng.integers(0, model.vocab_size, (*shape, sizes.response))
    tokens = np.concatenate([prompt.repeat(2, 2), response], -1).astype(np.int32)
    responses = Padded(
        tokens, np.full(shape, sizes.prompt), np.full(shape, tokens.shape[-1])
    )
    score = jax.jit(lambda v, r: log_probs(model, v, r))
    return PairBatch(
        step=np.zeros(users, np.int32),
        row=np.arange(users, dtype=np.int32),
        user=np.arange(users, dtype=np.int32),
        episode=Episode(
            choices(sizes.context), choices(pairs), np.zeros(users, np.int32)
        ),
        responses=responses,
        reference=jax.device_get(score(variables, responses)),
    )


def log_probs(model: Transformer, variables: Any, responses: Padded) -> jax.Array:
    """log pi(response | prompt) of responses of any shape."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), responses)
    return response_log_probs(model, variables, flat).reshape(responses.start.shape)


def make_steps(sizes: Sizes) -> dict[str, Callable[[], tuple[Callable, tuple]]]:
    """name: makes (step, its arguments); only what is made takes memory."""

    def make(latent, modulation, computed=False):
        model, base = make_model(sizes)
        batch = make_batch(sizes, model, base)
        modulations = tuple((name, modulation) for name in OUTPUTS)
        model, base = with_biases(model, base, shifted(modulations))
        policy = Policy(
            model, RewardModel(latent_dim=LATENT_DIM), modulations, latent=latent
        )
        loss = make_loss(policy, beta=BETA, nll_weight=NLL_WEIGHT)

        def computing(variables, batch, key):
            tables, rows = batch
            reference = log_probs(model, tables["base"], rows.responses)
            return loss(variables, (tables, rows._replace(reference=reference)), key)

        optimizer = make_optimizer(
            learning_rate=LEARNING_RATE, steps=1000, warmup_steps=20
        )
        step = make_step(computing if computed else loss, optimizer)
        variables = policy.init(jax.random.key(1), base, model.width)
        state = init_state(variables, optimizer)
        return step, (state, ({"base": base}, batch), jax.random.key(2))

    rank = sizes.rank
    return {
        sizes.plain: lambda: make(NONE, f"lora({rank})"),
        sizes.film: lambda: make(INFERRED, "scale + shift"),
        sizes.low_rank: lambda: make(INFERRED, f"low_rank({rank})"),
        sizes.computed: lambda: make(INFERRED, f"low_rank({rank})", computed=True),
    }
