"""Evaluations and predictions made up for tables, sentences and figures."""

import copy

import numpy as np

from fsa.evaluation.predictions import Predictions

SIZES = [0, 1, 3]


def evaluation(**changes):
    """As `scores.evaluation` makes it, with numbers that can be told apart."""
    made = {
        "n_context": SIZES,
        "users": 37,
        "accuracy": [0.751, 0.862, 0.953],
        "accuracy_ci": [[0.741, 0.761], [0.852, 0.872], [0.943, 0.963]],
        "gain": [0.0, 0.111, 0.202],
        "gain_ci": [[0, 0], [0.101, 0.121], [0.192, 0.212]],
        "nll": [0.5, 0.3, 0.1],
        "nll_ci": [[0.49, 0.51], [0.29, 0.31], [0.09, 0.11]],
        "ece": [0.0123, 0.0234, 0.0345],
        "ece_if_calibrated": [0.0011, 0.0022, 0.0033],
        "ceiling_accuracy": [0.75, 0.875, 0.969],
        "ceiling_nll": [0.45, 0.25, 0.05],
        "groups": {
            "type 0": {
                "users": 20,
                "accuracy": [0.81, 0.82, 0.83],
                "accuracy_ci": [[0.80, 0.82], [0.81, 0.83], [0.82, 0.84]],
            }
        },
        "diagnostics": {
            "latent_dim": 2,
            "active_units": [0, 1, 2],
            "kl_per_dimension": [[0, 0], [0.5, 1.0], [2.0, 3.25]],
            "flip_rate": [None, 0.77, 0.88],
            "flips_are_types": True,
            "bayes_effective_samples": {"median": [4000.4, 1500.0, 333.3]},
        },
    }
    return {**copy.deepcopy(made), **changes}


def without_latent(**changes):
    """A model without z, on users whose Bayes-optimal predictor is not known."""
    made = evaluation(ceiling_accuracy=None, ceiling_nll=None, groups={})
    made["diagnostics"] = {
        "latent_dim": 0,
        "active_units": [0, 0, 0],
        "kl_per_dimension": [[], [], []],
        "flip_rate": [None, 0.0, 0.0],
        "flips_are_types": False,
    }
    return {**made, **changes}


def many_sizes(**changes):
    """Twelve context sizes, the largest numbers, and long names of groups."""
    sizes = [0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000]
    count = len(sizes)
    shares = {"accuracy": [1.0] * count, "accuracy_ci": [[0.999, 1.0]] * count}
    made = evaluation(
        n_context=sizes,
        users=10**6,
        **shares,
        gain=[0.0] * count,
        gain_ci=[[-0.5, 0.5]] * count,
        nll=[1e6 - n for n in sizes],
        nll_ci=[[1e6, 1e6]] * count,
        ece=[1e6] * count,
        ece_if_calibrated=[1e6] * count,
        ceiling_accuracy=[1.0] * count,
        ceiling_nll=[1e6 - 2 * n for n in sizes],
        groups={
            f"{'group ' * 9}{i}": {"users": 10**6, **copy.deepcopy(shares)}
            for i in range(12)
        },
        diagnostics={
            "latent_dim": 1024,
            "active_units": [1024] * count,
            "kl_per_dimension": [[1e6] * 1024] * count,
            "flip_rate": [1.0] * count,
            "flips_are_types": False,
            "bayes_effective_samples": {"median": [1e6] * count},
        },
    )
    return {**made, **changes}


def predictions(dim, num_groups=2):
    rng = np.random.default_rng(0)
    users, episodes, targets = 11, 2, 5
    shape = (users, episodes, len(SIZES))
    return Predictions(
        log_prob=np.log(rng.uniform(0.2, 1, (*shape, targets))),
        flipped=None,
        bayes=None,
        effective_samples=None,
        mask=rng.random((users, episodes, targets)) < 0.8,
        informative=np.ones(shape, bool),
        target_differs=np.ones((users, episodes, targets), bool),
        latent_mean=rng.normal(size=(*shape, dim)),
        latent_kl=np.ones((*shape, dim)),
        group=np.arange(users) % num_groups,
    )


def generated(**changes):
    """As `TextEvaluator` makes it, for two groups, with different numbers."""

    def measures(first):
        return {
            "share": [first, None, first + 0.02],
            "share_ci": [[first - 0.01, first + 0.01], [np.nan] * 2, [first, 0.99]],
            "attribute": [first - 1, None, 1 - first],
            "attribute_ci": [[first - 1.5, first], [np.nan] * 2, [0, 2]],
            "validity": [first + 0.001, first + 0.002, first + 0.003],
            "validity_ci": [[first, first + 0.01]] * 3,
            "perplexity": [first + 3, first + 4, first + 5],
            "tokens": [10 * first, 20 * first, 30 * first],
            "tokens_ci": [[first, 40 * first]] * 3,
            "words": [5 * first, 10 * first, 15 * first],
            "words_ci": [[first, 20 * first]] * 3,
            "kl": [first, 2 * first, 3 * first],
            "kl_ci": [[first, 3 * first]] * 3,
        }

    reference = {name: values[:1] for name, values in measures(0.4).items()}
    groups = {"formal": measures(0.5), "casual": measures(0.6)}
    of_group = {"accuracy": [0.5, 0.7, 0.9], "accuracy_ci": [[0.4, 0.95]] * 3}
    made = evaluation(
        attribute="corpus_formality",
        generated=groups,
        reference=reference,
        groups={"formal": {"users": 3, **of_group}, "casual": {"users": 3, **of_group}},
    )
    return {**made, **changes}


def of_everybody():
    """The same for users without groups, of whom no attribute is known."""
    made = generated(attribute="", groups={})
    found = made["generated"]["formal"]
    for measures in (found, made["reference"]):
        for name in ("share", "attribute", "validity"):
            del measures[name], measures[f"{name}_ci"]
    return {**made, "generated": {"everybody": found}}
