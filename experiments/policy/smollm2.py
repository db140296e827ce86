"""Policies on SmolLM2-135M-Instruct, for users who disagree about its answers.

Users choose between the model's own samples to prompts.jsonl beside this file: 240
plain requests, 180 for training users, 20 and 40 for those of validation and test.
docs/policies.md tells how to get the model without a model hub.

For 2 CPU cores, in two stages: "reward" learns to infer z from choices of people of
four groups, who want answers long or short ("log_words"), or as lists or prose
("lists"), and "given-np-dpo" steers to that z by the same choices:

    fsa sample --model=models/smollm2 --prompts=experiments/policy/prompts.jsonl \\
      --num_samples=6 --max_new_tokens=128 --out=data/smollm2/samples.jsonl
    fsa prepare --samples=data/smollm2/samples.jsonl --attributes=log_words,lists \\
      --axes --users=train:24,valid:4,test:6 --num_choices=train:20,valid:12,test:14 \\
      --min_gap=0.3 --out=data/smollm2/people
    fsa train --config=experiments/policy/smollm2.py:reward \\
      --workdir=runs/smollm2-reward
    fsa train --config=experiments/policy/smollm2.py:given-np-dpo \\
      --workdir=runs/smollm2
    fsa evaluate --workdir=runs/smollm2 --full

"distillation" takes the place of "given-np-dpo" to learn from the rewards of any two
answers. docs/results.md has times and figures. "crowd-reward" and "crowd-distillation"
are the same for the real people of CrowdRAG-25, who chose between answers of others: z
is inferred from the form of what they chose, and the policy learns from the rewards of
the same samples, 4 to a prompt (FOLDER has that data as crowdrag25). Groups by people's
taste for lists are for evaluation alone:

    awk 'NR % 3' data/smollm2/samples.jsonl > data/smollm2/some.jsonl
    python -m benchmarks.crowdrag --shared=FOLDER --out=data
    fsa prepare --choices=data/crowdrag-tastes.jsonl --max_bad_share=0.2 \\
      --samples=data/smollm2/some.jsonl --out=data/smollm2/crowd
    fsa train --config=experiments/policy/smollm2.py:crowd-reward \\
      --workdir=runs/smollm2-crowd-reward
    fsa train --config=experiments/policy/smollm2.py:crowd-distillation \\
      --workdir=runs/smollm2-crowd
    fsa evaluate --workdir=runs/smollm2-crowd --full

For one GPU there are policies of one attribute in one stage, of users who want answers
long or short ("words"), as lists or as prose ("lists"), formal or casual ("formality"),
by the measures of fsa/data/sources/attributes.py:

    fsa sample --model=models/smollm2 \\
      --prompts=experiments/policy/prompts.jsonl --max_new_tokens=208 \\
      --dtype=bfloat16 --batch_size=256 --out=data/smollm2/samples.jsonl
    fsa prepare --samples=data/smollm2/samples.jsonl \\
      --attributes=words --min_gap=20 --out=data/smollm2/words
    fsa train --config=experiments/policy/smollm2.py:words-np-dpo \\
      --workdir=runs/smollm2-words
    fsa evaluate --workdir=runs/smollm2-words

The argument is ATTRIBUTE-POLICY with a policy of fsa/recipes/presets.py, by default
words-np-dpo; "np-dpo" alone is of words. For lists and formality `--min_gap` is 0.5,
as by default. More tokens are sampled than `task.max_response` keeps, so that an answer
that was cut is never taken for one that ended there.

ATTRIBUTE-POLICY-tiny, or "tiny" alone, runs the same commands in a few steps on a CPU.
It shows that everything works, but does not steer. docs/policies.md has its commands
and their times.

These are sized for one GPU: bfloat16 and layers that are computed again for gradients.
No GPU was at hand: neither the time nor the memory of the full size has been measured,
nor whether these settings steer. Step sizes and weights are those that steered the
small language models of corpus.py, except for `dpo.beta`, which is small as usual for
long answers (Rafailov et al. 2023).
"""

from fsa.errors import InputError
from fsa.recipes.presets import (
    DISTILLATION,
    POLICIES,
    REWARD,
    STAGES,
    policy,
    stage,
)

ATTRIBUTES = ("words", "lists", "formality")
# The stages for people on two axes, and those for the people of CrowdRAG-25.
PEOPLE = tuple(STAGES)
CROWD = {f"crowd-{name}": name for name in (REWARD, DISTILLATION)}


def get_config(arg: str = "words-np-dpo"):
    """Returns the config of a stage, or of one attribute and policy, tiny or not.

    Raises:
      InputError: if the stage, the attribute or the policy is unknown.
    """
    is_tiny = arg == "tiny" or arg.endswith("-tiny")
    name = "np-dpo" if arg == "tiny" else arg.removesuffix("-tiny")
    if name in PEOPLE and not is_tiny:
        return _of_people(name)
    if name in CROWD and not is_tiny:
        return _of_crowd(CROWD[name])
    if name in POLICIES:
        name = f"{ATTRIBUTES[0]}-{name}"
    attribute, _, chosen = name.partition("-")
    if attribute not in ATTRIBUTES or chosen not in POLICIES:
        raise InputError(
            f"{arg!r} is none of {', '.join((*PEOPLE, *CROWD))} and no "
            "ATTRIBUTE-POLICY or "
            f"ATTRIBUTE-POLICY-tiny with one of {', '.join(ATTRIBUTES)} and one of "
            f"{', '.join(POLICIES)}"
        )
    config = policy(chosen)
    config.task.path = f"data/smollm2/{attribute}"
    config.task.max_prompt = 64
    config.task.max_response = 192
    config.task.buckets = (256,)
    config.language_model.path = "models/smollm2"
    config.language_model.dtype = "bfloat16"
    config.language_model.remat = "nothing_saveable"

    config.dpo.beta = 0.1
    if config.policy.latent == "inferred":
        config.dpo.reward_steps = 200
        config.dpo.reward_weight = 1.0
    config.train.steps = 1000
    config.train.validate_every = 200
    config.eval.attribute = attribute
    # Evaluation computes all targets of one context size of a user at once.
    config.eval.users_at_once = 2
    if is_tiny:
        _shrink(config)
    return config


def _of_people(name: str):
    """Returns the config of a stage for people on two axes, sized for 2 CPU cores."""
    config = stage(name)
    config.task.path = "data/smollm2/people"
    config.task.max_prompt = 48
    config.task.max_response = 112
    config.task.buckets = (160,)
    # Hidden states show how long an answer is, but hardly whether it is a list.
    config.task.pooling = "mean_and_last_and_form"
    config.task.max_context = 8
    config.language_model.path = "models/smollm2"
    config.language_model.dtype = "float32"
    config.eval.num_context = (5,)
    config.eval.num_targets = 7
    if name == REWARD:
        config.model.latent_dim = 2
        config.model.dropout = 0.5
        config.task.num_targets = 12
        # With less of it, answers of training are known by heart.
        config.optimizer.weight_decay = 10.0
        config.train.steps = 300
        config.train.validate_every = 50
        return config
    config.policy.reward_model = "runs/smollm2-reward"
    config.policy.zero = "outputs"
    config.optimizer.learning_rate = 2e-3
    # Of fewer choices z tells little, and a step costs as much.
    config.task.min_context = 3
    if name == DISTILLATION:
        # At 2e-3, and asked for 4 nats a standard deviation, the loss jumped.
        config.dpo.beta = 0.1
        config.dpo.clip = 2.0
        config.optimizer.learning_rate = 1.5e-3
    else:
        config.dpo.beta = 0.3
        config.dpo.nll_weight = 0.5
    config.optimizer.warmup_steps = 5
    # Each of 8 people has a z of its own and one pair.
    config.task.num_targets = 1
    config.train.batch_size = 8
    config.train.steps = 130
    config.train.average_decay = 0.9
    config.train.validate_every = 65
    config.eval.valid_sample = 12
    config.eval.users_at_once = 2
    config.eval.attribute = "log_words,lists"
    config.eval.max_new_tokens = 256
    config.eval.writers_per_group = 6
    config.eval.prompts_per_writer = 6
    config.eval.partway = (0.5,)
    config.eval.between = ()
    return config


def _of_crowd(name: str):
    """Returns the config of a stage for the people of CrowdRAG-25."""
    config = _of_people(name)
    config.task.path = "data/smollm2/crowd"
    # It is the form of answers that these people disagree about (docs/results.md).
    config.task.pooling = "form"
    config.task.max_context = 10
    config.eval.num_context = (0, 10)
    config.eval.num_targets = 5
    if name == REWARD:
        config.task.num_targets = 8
        config.optimizer.weight_decay = 0.1
        config.train.average_decay = 0.99
        config.train.steps = 200
        return config
    config.policy.reward_model = "runs/smollm2-crowd-reward"
    # Of the pairs of samples one in four differs in lists, and here every second one.
    config.task.candidates = 8
    config.eval.attribute = "lists"
    config.eval.writers_per_group = 12
    config.eval.prompts_per_writer = 3
    config.eval.max_new_tokens = 160
    # Ten choices tell little of a taste, so z is near nobody's: also of stronger ones.
    config.eval.partway = (2.0,)
    return config


def _shrink(config):
    """Reduces a config to a few steps on few, short answers, in float32 for CPUs."""
    config.task.path += "-tiny"
    config.task.max_context = 2
    config.task.num_targets = 2
    config.task.max_response = 40
    config.task.buckets = (104,)
    config.language_model.dtype = "float32"
    config.language_model.remat = ""
    config.policy.modulations = (("attention/out", "low_rank(2)"),)
    config.model.hidden = 16
    config.model.latent_dim = 4
    if config.policy.latent == "inferred":
        config.dpo.reward_steps = 2
    config.optimizer.warmup_steps = 1
    config.train.batch_size = 2
    config.train.steps = 6
    config.train.validate_every = 3
    config.eval.num_context = (0, 1)
    config.eval.num_targets = 2
    config.eval.num_resamples = 100
    config.eval.writers_per_group = 2
    config.eval.prompts_per_writer = 2
