"""Steering on a small language whose attributes are known, nothing downloaded.

`:language` pretrains the language model (fsa/data/corpus.py has the grammar); its own
samples become the choices of two opposite groups of users, or of users on a continuum,
whom `:np-dpo`, `:dpo` or `:dpo-by-group` then follow. `make demo-policy` runs all of
it; docs/policies.md has the commands, one by one, and the results.
"""

from experiments.base import language_model, policy


def get_config(arg: str = "np-dpo"):
    """The config of the language model ("language") or of a policy."""
    if arg == "language":
        return language_model()
    config = policy(arg)
    config.task.path = "runs/corpus/choices"
    config.task.separator = " "
    config.task.max_prompt = 8
    config.task.max_response = 40
    config.task.buckets = (48,)
    config.language_model.path = "runs/corpus/language/model"
    if config.policy.latent == "inferred":
        config.dpo.reward_steps = 100
    config.train.steps = 300
    config.train.validate_every = 100
    config.eval.attribute = "corpus_formality"
    config.eval.validity = "corpus"
    return config
