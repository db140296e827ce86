"""Policies on a small artificial language with known attributes; no downloads.

`:language` pretrains the language model, with the grammar of
fsa/data/sources/corpus.py. Its own samples become the choices of two opposite groups of
users. `:reward` learns to infer z from them, and `:given-np-dpo` or `:distillation`
steers the language model to the z that it gives (`--config.policy.reward_model=RUN`).
`make demo-policy` runs the language model, `:reward` and `:given-np-dpo`, 8 minutes on
2 CPU cores; docs/policies.md has the results: 97 to 99% of choices from n = 3 on.

`:np-dpo` learns both at once, and `:dpo` or `:dpo-by-group` are for everybody or for
each labelled group. `:continuum` is np-dpo for users who weigh three attributes each in
their own way; `:continuum-reward` and `:continuum-distillation` are its two stages,
with which 86 to 87% of choices are predicted at n = 10. docs/results.md has the
figures.
"""

from fsa.recipes.presets import (
    LARGE_MODULATIONS,
    POLICIES,
    REWARD,
    STAGES,
    check_name,
    language_model,
    policy,
    stage,
)

_CONTINUUM = "continuum"
VARIANTS = (
    "language",
    *POLICIES,
    *STAGES,
    _CONTINUUM,
    *(f"{_CONTINUUM}-{name}" for name in STAGES),
)


def get_config(arg: str = "np-dpo"):
    """Returns the config of "language", of "reward" or of a policy."""
    check_name("variant", arg, VARIANTS)
    if arg == "language":
        return language_model()
    of_continuum = arg.startswith(_CONTINUUM)
    name = arg.removeprefix(_CONTINUUM).removeprefix("-") or "np-dpo"
    config = stage(name) if name in STAGES else policy(name)
    data = "continuum" if of_continuum else "choices"
    config.task.path = f"runs/corpus/{data}"
    config.task.separator = " "
    config.task.max_prompt = 8
    config.task.max_response = 40
    config.task.buckets = (48,)
    config.language_model.path = "runs/corpus/language/model"
    if name in STAGES and of_continuum:
        # Several attributes are in the words, and some in their shares.
        config.task.pooling = "mean_and_words"
    if name == REWARD:
        return _of_weights(config) if of_continuum else _of_groups(config)
    if name in STAGES:
        config.policy.reward_model = f"runs/corpus/{data}-reward"
    elif config.policy.latent == "inferred":
        config.dpo.reward_steps = 100
        config.dpo.reward_weight = 1.0
    config.train.steps = 400
    config.train.validate_every = 100
    if name == "given-np-dpo" and not of_continuum:
        config.policy.zero = "outputs"
        config.train.steps = 200
    config.eval.attribute = "" if of_continuum else "corpus_formality"
    config.eval.validity = "corpus"
    if of_continuum:
        if name == "np-dpo":
            # The reward model needs many users and choices, the policy only few.
            config.task.num_targets = 16
            config.dpo.reward_steps = 3000
            config.train.steps = 5000
        elif name == "given-np-dpo":
            config.task.num_targets = 1
            config.train.steps = 2000
        else:
            config.policy.modulations = LARGE_MODULATIONS
            config.dpo.clip = 2.0
            config.train.steps = 600
        if config.dpo.loss == "dpo":
            # Choices are noisy, and rewards are not.
            config.task.num_pairs = 1
            config.train.batch_size = 64
            config.train.validate_every = 500
        config.eval.weighed_attributes = (
            "corpus_formality",
            "corpus_sentiment",
            "corpus_lists",
        )
        config.eval.slope = 8.0
    return config


def _of_groups(config):
    """Sets a reward model of two groups who want opposite things."""
    config.train.steps = 100
    config.train.validate_every = 50
    return config


def _of_weights(config):
    """Sets a reward model of people who weigh three attributes."""
    config.objective.name = "evidence"
    config.model.latent_dim = 3
    config.model.hidden = 128
    config.model.dropout = 0.3
    config.optimizer.weight_decay = 2.0
    config.train.steps = 2000
    config.train.validate_every = 250
    return config
