"""Defines each field of a config once: name, default, range, meaning, kinds of run.

From these definitions come the default configs, the checks of a config, `--help_fields`
and docs/fields.md (`python -m fsa.recipes.fields` prints it). To add a field:
add a `Field` to `FIELDS`; give the function that the comment above its section names a
keyword of the same name; check it against other fields in config.py, if need be; run
`python -m fsa.recipes.fields > docs/fields.md`.

A run is of one kind: a reward model, a policy or a language model. The field `kind`
names it, and it decides which other fields the config has. A reward model's task
(`task.name`) decides the rest.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fsa import text_tables
from fsa.conditioning.spec import GATES, ZEROS
from fsa.data.tasks.packing import AUTO, PACKINGS
from fsa.data.tasks.people import CHOICES, RATINGS
from fsa.evaluation.generated_texts import VALIDITY
from fsa.inference import saved_model
from fsa.inference.saved_model import KINDS, LANGUAGE_MODEL, POLICY, REWARD_MODEL
from fsa.language.attention_kernels import ATTENTIONS
from fsa.models.linear_reward import CHOICES as CHOICE_CONTEXTS
from fsa.models.linear_reward import CONTEXTS
from fsa.models.policy import LATENTS
from fsa.models.reward import LIKELIHOODS
from fsa.models.reward_models import CONDITIONINGS, OBJECTIVES
from fsa.recipes.ranges import (
    ATTRIBUTE_LIST,
    ATTRIBUTE_NAMES,
    BELOW_ONE,
    FLAG,
    MODULATIONS,
    NUMBERS,
    PATH,
    PATH_OR_NONE,
    POOLING,
    POSITIVE,
    REMAT,
    SHAPE,
    SHARE,
    TEMPLATE_ARGUMENTS,
    TEXT,
    WIDTHS,
    Range,
    growing,
    number,
    one_of,
    whole_number,
)
from fsa.training.policy_loss import LOSSES

# Most choices of one person in an episode. Every example of a batch is padded to the
# largest episode that the config allows, so a slip would cost all memory of a device.
# Runs of versions without this limit go on.
_MOST = 10_000

# Bytes of users' records: about two million choices.
MOST_IN_MEMORY = 2**24

TWO_TYPES, CONTINUUM, IDEAL_POINT, PEOPLE, RESPONSES = TASKS = (
    "two_types",
    "continuum",
    "ideal_point",
    "people",
    saved_model.RESPONSES,
)


class ByKind(dict):
    """Maps each kind of run to its default of a field."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    Attributes:
      name: with dots between the sections and the field, as on the command line.
      default: its value if an experiment does not set it. Saved runs from before the
        field existed get it as well, so it reproduces what those runs did. A `ByKind`
        if it differs between kinds of run.
      range: the values that are allowed.
      doc: its meaning, in one line.
      kinds: kinds of run that have it.
      tasks: tasks of reward models that have it; it does not concern policies.
      optional: the type of its values if None is allowed as well, else None.
      recorded: the values that runs of earlier versions may have, if those are more.
    """

    name: str
    default: Any
    range: Range
    doc: str
    kinds: tuple[str, ...] = KINDS
    tasks: tuple[str, ...] = TASKS
    optional: type | None = None
    recorded: Range | None = None

    def is_in(self, kind: str, task: str | None) -> bool:
        """Returns whether runs of a kind have the field; `task` is a reward model's."""
        return kind in self.kinds and (kind != REWARD_MODEL or task in self.tasks)

    def default_of(self, kind: str) -> Any:
        """Returns the default in runs of a kind; None if it has none."""
        if isinstance(self.default, ByKind):
            return self.default[kind]
        return self.default

    def wrong(self, value: Any, *, recorded: bool = False) -> str | None:
        """Returns why a value is not allowed, or None if it is allowed.

        Args:
          value: the value.
          recorded: whether a run has recorded it.
        """
        if value is None and self.optional:
            return None
        allowed = self.recorded if recorded and self.recorded else self.range
        verdict = allowed.allows(value)
        if verdict is True:
            return None
        detail = f" ({verdict})" if verdict else ""
        return f"must be {self.range_text}{detail}"

    @property
    def range_text(self) -> str:
        """The values that are allowed, in words."""
        return f"{self.range.text}, or None" if self.optional else self.range.text


_FEW_SHOT = (REWARD_MODEL, POLICY)
_SIMULATED = (TWO_TYPES, CONTINUUM, IDEAL_POINT)
_DATASETS = (PEOPLE, RESPONSES)


def _reward_model(*args, **kwargs):
    return Field(*args, **kwargs, kinds=(REWARD_MODEL,))


def _few_shot(*args, **kwargs):
    return Field(*args, **kwargs, kinds=_FEW_SHOT)


def _policy(*args, **kwargs):
    return Field(*args, **kwargs, kinds=(POLICY,))


def _responses(*args, **kwargs):
    return Field(*args, **kwargs, kinds=_FEW_SHOT, tasks=(RESPONSES,))


def _language_model(*args, **kwargs):
    return Field(*args, **kwargs, kinds=(LANGUAGE_MODEL,))


FIELDS = (
    Field(
        "kind",
        ByKind({kind: kind for kind in KINDS}),
        one_of(*KINDS),
        "What the run trains; it decides which other fields there are.",
    ),
    Field(
        "seed",
        0,
        whole_number(0, 2**31 - 1),
        "Seed of all random numbers, such as users' order and initial parameters.",
    ),
    # Keywords of fsa.training.step.make_optimizer, by run.build_optimizer.
    Field(
        "optimizer.learning_rate",
        ByKind({REWARD_MODEL: 5e-3, POLICY: 3e-3, LANGUAGE_MODEL: 3e-3}),
        POSITIVE,
        "Highest learning rate of AdamW; it rises in the warm-up and decays to 0.",
    ),
    Field(
        "optimizer.warmup_steps",
        ByKind({REWARD_MODEL: 50, POLICY: 20, LANGUAGE_MODEL: 50}),
        whole_number(0),
        "Steps in which the learning rate rises from 0.",
    ),
    Field(
        "optimizer.weight_decay",
        ByKind({REWARD_MODEL: 0.0, POLICY: 0.0, LANGUAGE_MODEL: 0.01}),
        number(0),
        "Weight decay of matrices; biases, scales and the prior have none.",
    ),
    Field(
        "optimizer.clip_norm",
        1.0,
        POSITIVE,
        "Global norm that gradients are clipped to.",
    ),
    Field(
        "optimizer.head_learning_rate",
        None,
        POSITIVE,
        "Highest learning rate of the maps from z to modulations; None for "
        "optimizer.learning_rate.",
        kinds=(POLICY,),
        optional=float,
    ),
    # Keywords of fsa.training.loop.train and of runners, by train.py and run.py.
    Field(
        "train.steps",
        ByKind({REWARD_MODEL: 1000, POLICY: 200, LANGUAGE_MODEL: 2500}),
        whole_number(1),
        "Number of updates; a multiple of train.validate_every.",
    ),
    Field(
        "train.batch_size",
        ByKind({REWARD_MODEL: 64, POLICY: 8, LANGUAGE_MODEL: 64}),
        whole_number(1),
        "Examples of a global batch: users, or sequences of a language model.",
    ),
    Field(
        "train.steps_per_call",
        ByKind({REWARD_MODEL: 50, POLICY: 1, LANGUAGE_MODEL: 50}),
        whole_number(1),
        "Updates that one call of the compiled program makes.",
    ),
    Field(
        "train.validate_every",
        ByKind({REWARD_MODEL: 250, POLICY: 50, LANGUAGE_MODEL: 500}),
        whole_number(1),
        "Updates between validations, each followed by a checkpoint; a multiple of "
        "train.steps_per_call.",
    ),
    Field(
        "train.average_decay",
        0.0,
        BELOW_ONE,
        "Decay of the moving average of the parameters, which is the model that is "
        "used; 0 for the parameters themselves.",
    ),
    Field(
        "train.keep_last",
        2,
        whole_number(2),
        "Latest checkpoints that are kept besides the best one.",
    ),
    Field(
        "train.skip_bad_steps",
        0,
        whole_number(0),
        "Updates of a run that may be skipped because the loss or a gradient is not "
        "finite.",
    ),
    Field(
        "train.accumulate",
        1,
        whole_number(1),
        "Micro-batches that a batch is computed in, to save memory.",
    ),
    Field(
        "train.parallel",
        "mesh",
        one_of("mesh", "pmap"),
        "How steps run on several devices: jax.jit on a mesh, or jax.pmap.",
    ),
    # The mesh, see fsa/parallel/sharding.py. A run may resume on another one.
    Field(
        "mesh.fsdp",
        1,
        whole_number(1),
        "Devices that each parameter is stored on in parts.",
    ),
    Field(
        "mesh.tensor",
        1,
        whole_number(1),
        "Devices that compute one example together.",
    ),
    # Tasks, see fsa/data/tasks/.
    _reward_model(
        "task.name",
        "people",
        one_of(*TASKS),
        "Source of episodes: simulated users, the people of a dataset, or choices "
        "between responses that a language model embeds as for a policy.",
    ),
    Field(
        "task.path",
        "data/mine",
        PATH,
        "Folder of the dataset.",
        kinds=_FEW_SHOT,
        tasks=_DATASETS,
    ),
    _few_shot(
        "task.max_context",
        10,
        whole_number(0, _MOST),
        "Most context choices in training; n is drawn from 0 (or task.min_context) to "
        "this for each user.",
        recorded=whole_number(0),
    ),
    _few_shot(
        "task.num_targets",
        ByKind({REWARD_MODEL: 10, POLICY: 4}),
        whole_number(1, _MOST),
        "Most target choices of a user in training.",
        recorded=whole_number(1),
    ),
    _reward_model(
        "task.slope",
        None,
        POSITIVE,
        "Slope of the Bradley-Terry-Luce noise in choices; None for exact choices.",
        tasks=(TWO_TYPES,),
        optional=float,
    ),
    _reward_model(
        "task.personal",
        2.0,
        number(0),
        "Weight of the part of the reward that differs between users.",
        tasks=(CONTINUUM, IDEAL_POINT),
    ),
    _reward_model(
        "task.shared",
        1.0,
        number(0),
        "Weight of the part of the reward that all users share.",
        tasks=(CONTINUUM,),
    ),
    _reward_model(
        "task.most_in_memory",
        MOST_IN_MEMORY,
        whole_number(0),
        "If the records of users take more bytes on disk, they stay there and are read "
        "batch by batch; episodes are the same.",
        tasks=(PEOPLE,),
    ),
    _reward_model(
        "task.train_on",
        CHOICES,
        one_of(CHOICES, RATINGS),
        "What training episodes are drawn from; ratings give fresh pairs each time.",
        tasks=(PEOPLE,),
    ),
    _reward_model(
        "task.min_choices",
        5,
        whole_number(2),
        "Users with fewer choices (or rated options) are not trained on.",
        tasks=_DATASETS,
    ),
    _reward_model(
        "task.pairing_noise",
        3.0,
        number(0),
        "Noise added to popularity when rated options are paired; small noise pairs "
        "options of equal popularity.",
        tasks=(PEOPLE,),
    ),
    _reward_model(
        "task.max_gap",
        None,
        number(0),
        "Largest difference of popularity in a pair of rated options; None for any.",
        tasks=(PEOPLE,),
        optional=float,
    ),
    _reward_model(
        "task.min_margin",
        0.0,
        number(0),
        "Two rated options make a choice where their ratings differ by more than this.",
        tasks=(PEOPLE,),
    ),
    _policy(
        "task.min_context",
        0,
        whole_number(0, _MOST),
        "Fewest context choices in training, at most task.max_context.",
    ),
    _policy(
        "task.num_pairs",
        None,
        whole_number(1),
        "Target choices whose responses the policy reads, which cost far more than the "
        "reward model; None for all.",
        optional=int,
    ),
    _responses(
        "task.max_prompt",
        256,
        whole_number(1),
        "Most tokens of a prompt; longer ones are left out.",
    ),
    _responses(
        "task.max_response",
        256,
        whole_number(1),
        "Most tokens of a response; longer ones are cut.",
    ),
    _responses(
        "task.buckets",
        (64, 128, 256, 512),
        growing(1),
        "Padded lengths; a batch has the smallest that holds its sequences.",
    ),
    _policy(
        "task.candidates",
        1,
        whole_number(1, 10_000),
        "Pairs that distillation draws for each one that it takes, which is the one "
        "whose rewards differ most over people.",
    ),
    _policy(
        "task.packing",
        AUTO,
        one_of(*PACKINGS),
        "Whether texts of several choices share rows in training. On a CPU, auto packs "
        "texts of 128 tokens and more if all else allows it; elsewhere it pads. On a "
        "TPU, rows needs language_model.attention=splash.",
    ),
    _policy(
        "task.rows_at_once",
        None,
        whole_number(1),
        "Rows that a device computes at once; more of them take more memory. By "
        "default 1, and with splash as many as most steps have on a device.",
        optional=int,
    ),
    _responses("task.system", "", TEXT, "System message of chats that have none."),
    _responses(
        "task.separator",
        "",
        TEXT,
        "Text between prompt and response where the tokenizer has no chat template.",
    ),
    _responses(
        "task.end",
        True,
        FLAG,
        "Whether a response ends in the end token if no chat template writes an end.",
    ),
    _responses(
        "task.template_arguments",
        "",
        TEMPLATE_ARGUMENTS,
        'What chat templates get besides messages, such as {"enable_thinking": false}.',
    ),
    _responses(
        "task.date",
        "26 Jul 2024",
        TEXT,
        "Date that chat templates get as today's date.",
    ),
    _responses(
        "task.pooling",
        "mean",
        POOLING,
        "Features of a response: hidden states, as a mean over its tokens or at the "
        "last one, the form of its text (list lines and the like), its words.",
    ),
    _language_model(
        "task.sequences", 30_000, whole_number(1), "Sequences of the training corpus."
    ),
    # Keywords of fsa.models.reward.RewardModel; run.model_arguments renames two.
    _few_shot(
        "model.hidden",
        ByKind({REWARD_MODEL: 32, POLICY: 64}),
        whole_number(1),
        "Width of every hidden layer.",
    ),
    _few_shot(
        "model.latent_dim",
        ByKind({REWARD_MODEL: 4, POLICY: 16}),
        whole_number(0),
        "Dimensions of z; 0 for a model that ignores the user.",
    ),
    _few_shot(
        "model.likelihood",
        "btl",
        one_of(*LIKELIHOODS),
        "Probability of a choice: Bradley-Terry-Luce, or Gaussian utilities (DPL).",
    ),
    _few_shot(
        "model.reward",
        "concatenated",
        one_of(*CONDITIONINGS),
        "How z enters the reward: beside an option's embedding, as scales and shifts "
        "of every layer, or linearly, where z is inferred by Bayes' rule.",
    ),
    _few_shot(
        "model.pooling",
        "mean",
        one_of("mean", "attention"),
        "How the context encoder pools choices.",
    ),
    _few_shot(
        "model.standard_prior",
        False,
        FLAG,
        "Whether z at n = 0 is N(0, I) in place of a learned prior, as in VPL.",
    ),
    _few_shot(
        "model.item_embeddings",
        False,
        FLAG,
        "Whether every item of the dataset gets an embedding of its own.",
    ),
    _few_shot(
        "model.item_dropout",
        0.0,
        SHARE,
        "Probability that a known item is treated as unknown in training.",
    ),
    # What only models that are linear in z have, see fsa/models/linear_reward.py.
    _reward_model(
        "model.num_components",
        1,
        whole_number(1, 1000),
        "Components of the prior of z.",
    ),
    _reward_model(
        "model.num_layers",
        1,
        whole_number(1, 100),
        "Hidden layers behind the option encoder.",
    ),
    _reward_model(
        "model.dropout",
        0.0,
        BELOW_ONE,
        "Share of the last hidden layer that is dropped in training.",
    ),
    _reward_model(
        "model.context",
        CHOICE_CONTEXTS,
        one_of(*CONTEXTS),
        "What contexts are made of: choices; votes, a like and a dislike for each "
        "choice; or ratings of single options, as a dataset has them.",
    ),
    _reward_model(
        "model.num_steps",
        12,
        whole_number(1, 1000),
        "Newton steps to the mode of the posterior.",
    ),
    _reward_model(
        "model.num_sweeps",
        2,
        whole_number(0, 100),
        "Sweeps of expectation propagation; 0 for Laplace's approximation.",
    ),
    # The few-shot objective, by build_loss of reward_model_run.py and policy_run.py.
    _few_shot(
        "objective.name",
        ByKind({REWARD_MODEL: "ml", POLICY: "deterministic"}),
        one_of(*OBJECTIVES),
        "Few-shot objective, see fsa/losses.py.",
    ),
    _few_shot(
        "objective.num_samples",
        ByKind({REWARD_MODEL: 8, POLICY: 4}),
        whole_number(1),
        "Samples of z in the objective.",
    ),
    _few_shot("objective.beta", 1.0, number(0), "Weight of the KL in elbo and vpl."),
    # The language model, used by fsa/recipes/responses.py.
    _responses(
        "language_model.path",
        "models/mine",
        PATH,
        "Hugging Face folder of the language model.",
    ),
    _responses(
        "language_model.digest",
        "",
        TEXT,
        'SHA-256 of the model\'s files; "" to record it when the run begins.',
    ),
    _policy(
        "language_model.shape",
        (),
        SHAPE,
        "Fields of the model's config.json; with them a dry run needs no folder.",
    ),
    _responses(
        "language_model.dtype",
        "float32",
        one_of("float32", "bfloat16"),
        "Type of the language model's parameters and of its computation.",
    ),
    _policy(
        "language_model.remat",
        "",
        REMAT,
        'Which activations are kept for gradients; "" for all.',
    ),
    _responses(
        "language_model.attention",
        "xla",
        one_of(*ATTENTIONS),
        "Attention kernel: cudnn on GPUs and splash on TPUs save memory.",
    ),
    # The first of two stages, used by fsa/recipes/given_reward.py.
    _policy(
        "policy.reward_model",
        "",
        PATH_OR_NONE,
        'Run of the reward model that z is given by, task.name=responses; "" to train '
        "one together with the policy.",
    ),
    _policy(
        "policy.reward_digest",
        "",
        TEXT,
        'SHA-256 of that run\'s checkpoint; "" to record it when the run begins.',
    ),
    # Keywords of fsa.models.policy.Policy, by policy_run.make_policy.
    _policy(
        "policy.latent",
        "inferred",
        one_of(*LATENTS),
        "Source of z: the user's choices, the labelled group, or none.",
    ),
    _policy(
        "policy.modulations",
        (("attention/out", "low_rank(8)"), ("mlp/down", "low_rank(8)")),
        MODULATIONS,
        "Which linear maps of each layer z modulates, and how.",
    ),
    _policy("policy.trunk", (), WIDTHS, "Widths of the hypernetwork's hidden layers."),
    _policy("policy.normalize", False, FLAG, "Whether only the direction of z counts."),
    _policy(
        "policy.zero",
        GATES,
        one_of(*ZEROS),
        "What of a low rank starts at zero: its gates, the maps from z, or its output "
        "factors as in LoRA, which learns faster on large models.",
    ),
    _policy(
        "policy.train_base",
        False,
        FLAG,
        "Whether the language model's own parameters are trained as well.",
    ),
    # Keywords of fsa.training.policy_loss.make_loss, by policy_run.build_loss.
    _policy(
        "dpo.loss",
        "dpo",
        one_of(*LOSSES),
        "Loss of choices, or regression onto the rewards that are given.",
    ),
    _policy("dpo.beta", 1.0, POSITIVE, "Weight of the KL to the language model."),
    _policy(
        "dpo.label_smoothing",
        0.0,
        number(0, 0.499),
        "Share of choices that are taken to be reversed by noise; 0 for ipo.",
    ),
    _policy(
        "dpo.clip",
        1.5,
        POSITIVE,
        "Largest difference of two rewards that distillation regresses onto, in "
        "standard deviations of differences.",
    ),
    _policy(
        "dpo.nll_weight",
        2.0,
        number(0),
        "Weight of the chosen response's negative log-likelihood per token.",
    ),
    _policy(
        "dpo.reward_weight",
        0.0,
        number(0),
        "Weight of the reward model's loss beside the policy's.",
    ),
    _policy(
        "dpo.reward_steps",
        0,
        whole_number(0),
        "First steps, in which only the reward model is trained.",
    ),
    # A language model that is pretrained here, see fsa/language/transformer.py.
    _language_model("transformer.width", 64, whole_number(1), "Width of the model."),
    _language_model("transformer.num_layers", 4, whole_number(1), "Layers."),
    _language_model("transformer.num_heads", 4, whole_number(1), "Attention heads."),
    _language_model(
        "transformer.num_kv_heads",
        4,
        whole_number(1),
        "Heads of keys and values; a divisor of transformer.num_heads.",
    ),
    _language_model(
        "transformer.head_dim", 16, whole_number(2), "Width of a head; even."
    ),
    _language_model(
        "transformer.mlp_width", 176, whole_number(1), "Hidden width of the MLPs."
    ),
    # Evaluation, and the validation during training.
    _few_shot(
        "eval.num_context",
        (0, 1, 3, 5, 10),
        growing(0, _MOST),
        "Sizes n of the context sets.",
        recorded=growing(0),
    ),
    _few_shot(
        "eval.num_targets",
        ByKind({REWARD_MODEL: 10, POLICY: 20}),
        whole_number(1, _MOST),
        "Most target choices of an episode.",
        recorded=whole_number(1),
    ),
    _few_shot(
        "eval.episodes_per_user", 1, whole_number(1), "Episodes of each test user."
    ),
    _few_shot(
        "eval.valid_episodes_per_user",
        1,
        whole_number(1),
        "Episodes of each validation user.",
    ),
    _few_shot("eval.num_samples", 64, whole_number(1), "Samples of z of a prediction."),
    _few_shot(
        "eval.num_resamples",
        1000,
        whole_number(1),
        "Bootstrap resamples of users for intervals.",
    ),
    _reward_model(
        "eval.users", 1000, whole_number(1), "Simulated test users.", tasks=_SIMULATED
    ),
    _reward_model(
        "eval.valid_users",
        500,
        whole_number(1),
        "Simulated validation users.",
        tasks=_SIMULATED,
    ),
    _reward_model(
        "eval.most_users",
        50_000,
        whole_number(1),
        "Test users who are predicted, spread evenly over all if there are more; their "
        "predictions are held in memory, about 2 kB each.",
        tasks=(PEOPLE,),
    ),
    _policy(
        "eval.valid_sample",
        None,
        whole_number(1),
        "Validation users that are scored while a policy is trained, at the largest "
        "eval.num_context alone; None for all users at all of them.",
        optional=int,
    ),
    _policy("eval.users_at_once", 8, whole_number(1), "Users scored in one batch."),
    _policy(
        "eval.attribute",
        "",
        ATTRIBUTE_NAMES,
        'Attribute that the groups of users disagree about, or several; "" if it is '
        "not known.",
    ),
    _policy(
        "eval.weighed_attributes",
        (),
        ATTRIBUTE_LIST,
        "Attributes that simulated users weigh, for the Bayes-optimal prediction.",
    ),
    _policy(
        "eval.slope",
        1.0,
        POSITIVE,
        "Bradley-Terry-Luce slope of the choices of those users.",
    ),
    _policy(
        "eval.validity",
        "words",
        one_of(*VALIDITY),
        "How the validity of texts is measured.",
    ),
    _policy(
        "eval.max_new_tokens",
        None,
        whole_number(1),
        "Most tokens of a written text; None for task.max_response.",
        optional=int,
    ),
    _policy(
        "eval.partway",
        (),
        NUMBERS,
        "Shares of the way from nobody (0) to each user (1) where texts are written.",
    ),
    _policy(
        "eval.between",
        (0.0, 0.25, 0.5, 0.75, 1.0),
        NUMBERS,
        "Shares of the way from each user (0) to one of another group (1), likewise.",
    ),
    _policy(
        "eval.writers_per_group",
        20,
        whole_number(1),
        "Test users of each group for whom texts are written.",
    ),
    _policy(
        "eval.prompts_per_writer",
        10,
        whole_number(1),
        "Texts written for each of them.",
    ),
    _language_model(
        "eval.sequences", 1000, whole_number(1), "Sequences of the held-out corpus."
    ),
)


def fields_of(kind: str, task: str | None = None) -> dict[str, Field]:
    """Returns the fields of a kind of run (and task, for reward models) by name."""
    return {field.name: field for field in FIELDS if field.is_in(kind, task)}


def defaults(kind: str, task: str | None = None) -> ConfigDict:
    """Returns a config of default values, in which unknown fields cannot be set.

    Args:
      kind: one of `KINDS`.
      task: one of `TASKS`, for a reward model.
    """
    config = ConfigDict()
    for name, field in fields_of(kind, task).items():
        *sections, last = name.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        value = task if name == "task.name" else field.default_of(kind)
        # A placeholder has a type, so that a value can be set on the command line.
        section[last] = value if value is not None else placeholder(field.optional)
    return config


def explain(fields: Mapping[str, Field], flat: Mapping[str, Any]) -> str:
    """Returns fields with their values in a flat config, meanings and ranges."""
    lines = []
    for name, field in fields.items():
        lines.append(f"{name} = {flat.get(name)!r}")
        lines.append(f"    {field.doc} It must be {field.range_text}.")
    return "\n".join(lines)


def reference() -> list[list[str]]:
    """Returns a row for each field, for docs: name, runs, default, range, meaning."""
    return [
        [field.name, _runs(field), _default(field), field.range_text, field.doc]
        for field in FIELDS
    ]


_PLURALS = {
    REWARD_MODEL: "reward models",
    POLICY: "policies",
    LANGUAGE_MODEL: "language models",
}


def _runs(field: Field) -> str:
    if field.kinds == KINDS:
        return "all"
    runs = [_PLURALS[kind] for kind in field.kinds]
    if field.tasks != TASKS:
        runs[0] += f" ({', '.join(field.tasks)})"
    return ", ".join(runs)


def _default(field: Field) -> str:
    if field.name == "kind":
        return "the kind"
    defaults = [field.default_of(kind) for kind in field.kinds]
    if all(value == defaults[0] for value in defaults):
        return repr(defaults[0])
    return ", ".join(map(repr, defaults))


_HEAD = """# Fields of a config

All fields of configs; `--config.NAME=VALUE` sets one. If kinds of run have different
defaults, these are listed in the order of the column "runs". The presets of
`fsa/recipes/presets.py` and the files in `experiments/` change some of them.
This page is generated: `python -m fsa.recipes.fields > docs/fields.md`.
"""


def main():
    """Prints docs/fields.md."""
    head = ["field", "runs", "default", "may be", "meaning"]
    rows = [[f"`{row[0]}`", row[1], f"`{row[2]}`", *row[3:]] for row in reference()]
    print(_HEAD)
    print(text_tables.markdown([head, *rows]))


if __name__ == "__main__":
    main()
