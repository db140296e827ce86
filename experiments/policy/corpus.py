"""Policies on a small artificial language with known attributes; no downloads.

`:language` pretrains the language model, with the grammar of
fsa/data/sources/corpus.py. Its own samples become the choices of two opposite groups of
users, whom `:np-dpo`, `:dpo` or `:dpo-by-group` then follow. `:continuum` is np-dpo for
users who weigh three attributes each in their own way. `make demo-policy` runs the
language model and `:np-dpo`, 5 minutes on 2 CPU cores; docs/policies.md has the
results: 98% of both groups' choices from n = 3 on.
"""

from fsa.recipes.presets import POLICIES, check_name, language_model, policy


def get_config(arg: str = "np-dpo"):
    """Returns the config of "language", the language model, a policy or "continuum"."""
    check_name("variant", arg, ("language", *POLICIES, "continuum"))
    if arg == "language":
        return language_model()
    config = policy("np-dpo" if arg == "continuum" else arg)
    config.task.path = "runs/corpus/choices"
    config.task.separator = " "
    config.task.max_prompt = 8
    config.task.max_response = 40
    config.task.buckets = (48,)
    config.language_model.path = "runs/corpus/language/model"
    if config.policy.latent == "inferred":
        config.dpo.reward_steps = 100
        config.dpo.reward_weight = 1.0
    config.train.steps = 400
    config.train.validate_every = 100
    config.eval.attribute = "corpus_formality"
    config.eval.validity = "corpus"
    if arg == "continuum":
        config.task.path = "runs/corpus/continuum"
        # The reward model needs many users and choices to learn z, the policy only few.
        config.task.num_targets = 16
        config.task.num_pairs = 1
        config.dpo.reward_steps = 3000
        config.train.steps = 5000
        config.train.batch_size = 64
        config.train.validate_every = 500
        config.eval.attribute = ""
        config.eval.weighed_attributes = (
            "corpus_formality",
            "corpus_sentiment",
            "corpus_lists",
        )
        config.eval.slope = 8.0
    return config
