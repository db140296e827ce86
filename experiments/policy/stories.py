"""Policies on a small pretrained model, for users who want many or few sentences.

stories260K (a Llama of 260,032 parameters that writes stories for children, as a
Hugging Face folder) continues openings of its own; users want many or few sentences in
40 tokens. 2 CPU cores, which other work shared: 2 minutes of sampling, then 3 minutes a
run and 2 to evaluate. Expected at n = 10: 91 to 93% of choices of users who want few
sentences, 86 to 87% of those who want many; 1.1 against 2.7 sentences in what is
written for them (2.0 unasked). docs/policies.md has the samples and all results.

    fsa train --config=experiments/policy/stories.py \
        --config.language_model.path=FOLDER --workdir=runs/stories/np-dpo

`:dpo` and `:dpo-by-group` are the baselines; `:paper` has the settings of the NP-DPO
paper's code that our fields can express. `:mood-reward` and `:mood-distillation` are
for users who want happy or sad stories, in two stages: the words of a story tell its
mood, and an embedding does not. They take 1 and 5 minutes; expected at n = 10 are 82%
of choices, and 90 to 99% of texts as wanted. Any field can be set, such as the seed:
`--config.seed=1`.
"""

from fsa.recipes.presets import (
    DISTILLATION,
    LARGE_MODULATIONS,
    POLICIES,
    REWARD,
    check_name,
    policy,
    stage,
)

MOOD = {f"mood-{name}": name for name in (REWARD, DISTILLATION)}


def get_config(arg: str = "np-dpo"):
    """Returns the config of a policy, of "paper", or of a stage for mood."""
    check_name("variant", arg, (*POLICIES, *MOOD, "paper"))
    if arg in MOOD:
        return _of_mood(MOOD[arg])
    config = _of_stories(policy("np-dpo" if arg == "paper" else arg))
    config.train.steps = 300
    config.train.validate_every = 100
    config.eval.attribute = "sentences"
    if arg == "paper":
        _as_the_paper(config)
    elif config.policy.latent == "inferred":
        config.dpo.reward_steps = 100
    return config


def _of_stories(config):
    config.task.path = "runs/stories/sentences"
    # Sampled stories are cut, not finished, so responses get no end token.
    config.task.end = False
    config.task.max_prompt = 16
    config.task.max_response = 40
    config.task.buckets = (56,)
    config.language_model.path = "models/stories260K"
    return config


def _of_mood(name: str):
    """Returns the config of a stage for users who want happy or sad stories."""
    config = _of_stories(stage(name))
    config.task.path = "runs/stories/mood"
    config.task.pooling = "words"
    if name == REWARD:
        # There are more words than people to learn them from.
        config.model.dropout = 0.5
        config.optimizer.weight_decay = 3.0
        config.train.steps = 200
        config.train.validate_every = 50
        return config
    config.policy.reward_model = "runs/stories/mood-reward"
    config.policy.modulations = LARGE_MODULATIONS
    config.train.steps = 600
    config.train.validate_every = 200
    config.eval.attribute = "mood"
    return config


def _as_the_paper(config):
    # Sum pooling is not among our fields, nor is one n for all users of a batch.
    config.model.pooling = "attention"
    config.model.latent_dim = 256
    config.policy.modulations = (
        ("attention/out", "scale + shift + lora(8)"),
        ("mlp/down", "scale + shift + lora(8)"),
    )
    config.dpo.beta = 0.05
    config.dpo.nll_weight = 0.0
    config.optimizer.learning_rate = 1e-4
    config.task.num_targets = 9
    config.train.batch_size = 2
    config.train.steps = 400
