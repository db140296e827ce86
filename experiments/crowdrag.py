"""Reward models of real people, who chose between answers to a question.

The data are CrowdRAG-25 (Webis, SIGIR 2025): 300 crowd workers with 15 choices each,
between answers that differ in form: lists, essays and news articles, by a language
model or by a person. `python -m benchmarks.crowdrag` prepares them with features of
form; then `--config=experiments/crowdrag.py:MODEL` with MODEL one of those in
fsa/recipes/presets.py (default bayes). The dropout, the learning rate and the steps
were chosen by cross-validation over the training and validation people
(docs/results.md). A run takes half a minute on a CPU core.
"""

from fsa.recipes.presets import people


def get_config(arg: str = "bayes"):
    """Returns the config of one model."""
    config = people(arg)
    config.task.path = "data/crowdrag"
    config.task.num_targets = 8
    if arg == "bayes":
        config.model.dropout = 0.5
    config.optimizer.learning_rate = 3e-3
    config.train.steps = 200
    config.train.validate_every = 100
    config.eval.num_targets = 10
    return config
