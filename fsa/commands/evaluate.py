"""Scores the best checkpoint of a run: `python -m launch.evaluate --workdir=DIR`.

Prints a table, and writes `evaluation.json` and pictures into the run directory.
With `--data=STORE` a policy predicts the choices of other users, and the files go into
a folder of the store's name there. `python -m launch.evaluate --compare A B C` puts
runs that were evaluated before into one table and one picture (`--out`, by default
compare.png in the first).
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from fsa.commands import command_line
from fsa.data.tasks.simulated import TwoTypes
from fsa.data.tasks.task import TEST
from fsa.episodes import Options
from fsa.errors import InputError
from fsa.evaluation import evaluation_file, report, scores
from fsa.evaluation.generated_texts import TextEvaluator, page, side_by_side
from fsa.evaluation.implicit_reward import (
    PolicyPredictor,
    bayes_optimal,
    margins,
    probe,
)
from fsa.evaluation.methods import Between, InContext, Reranked, Steered
from fsa.inference.predictor import Predictor
from fsa.inference.steerer import Steerer
from fsa.models.policy import INFERRED
from fsa.recipes.config import build_task, check
from fsa.recipes.runs import pair_task
from fsa.training import run_directory

_WORKDIR = flags.DEFINE_string("workdir", None, "The run to score.")
_COMPARE = flags.DEFINE_bool("compare", False, "Put the runs that follow side by side.")
_METHOD = flags.DEFINE_enum(
    "method",
    "policy",
    ["policy", "rerank", "in-context"],
    "Of a policy's run: the policy itself, or its language model with the best of 16 "
    "texts by the reward model, or with the person's choices shown as examples.",
)
_DATA = flags.DEFINE_string("data", None, "Choices to score a policy on; its own.")
_OUT = flags.DEFINE_string("out", None, "With --compare: where the picture goes.")

# Held-out users and their episodes are the same for every seed of a model.
_EVALUATION_SEED = 20241217

# Of the line between users of two groups.
_POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def evaluate(run_dir: epath.Path):
    """Writes evaluation.json and pictures; prints the table."""
    config = run_directory.read_config(run_dir)
    check(config)
    if _DATA.value:
        if config["task"]["name"] != "pairs":
            raise InputError(f"--data: {run_dir} is no policy's run")
        config["task"]["path"] = _DATA.value
        # Texts do not depend on whose choices are predicted.
        config["eval"]["attribute"] = ""
    command_line.keep_compiled(run_dir)
    kinds = {"pairs": evaluate_policy, "corpus": _refuse}
    kinds.get(config["task"]["name"], evaluate_reward)(config, run_dir)


def _refuse(config, run_dir: epath.Path):
    del config
    raise InputError(f"{run_dir}: a run of a language model; sample it instead")


def evaluate_policy(config, run_dir: epath.Path):
    """Of a policy, or a baseline on its data: what it predicts, and what it writes."""
    steerer = Steerer.load(run_dir)
    task = pair_task(config, steerer.language)
    settings = config["eval"]
    sizes = tuple(settings["num_context"])
    predictions, method = _method(config, steerer, task)
    evaluation = scores.evaluation(
        predictions, task, sizes, num_resamples=settings["num_resamples"]
    )
    evaluation["method"], evaluation["probe"] = _METHOD.value, probe(task)
    evaluation["margins"] = margins(predictions, task)
    if settings["weighed_attributes"]:
        best = bayes_optimal(
            task, settings["weighed_attributes"], sizes, settings["slope"]
        )
        evaluation["ceiling_accuracy"] = best.accuracy.mean(1).tolist()
        evaluation["ceiling_nll"] = best.nll.mean(1).tolist()
    print(report.table(evaluation))
    # Baselines, and scores on other data, stand beside the run's own files.
    folder = run_dir if _METHOD.value == "policy" else run_dir / _METHOD.value
    folder = folder / epath.Path(_DATA.value).name if _DATA.value else folder
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "evaluation.json"]
    if settings["attribute"]:
        judge = TextEvaluator(
            steerer.language,
            method,
            task,
            sizes,
            attribute=settings["attribute"],
            validity=settings["validity"],
            users_per_group=settings["writers_per_group"],
            prompts_per_user=settings["prompts_per_writer"],
            max_new_tokens=config["task"]["max_response"],
            num_resamples=settings["num_resamples"],
        )
        found, samples = judge()
        evaluation |= found
        print(report.generated_table(evaluation))
        if isinstance(method, Steered) and _has_line(steerer, task):
            found = judge.between(Between(steerer, task), _POINTS)
            evaluation["interpolation"] = {"points": _POINTS, "groups": found}
            print(report.interpolation_table(evaluation))
        files += [folder / "steering.png", folder / "samples.md"]
        report.plot_steering(evaluation, files[1])
        files[2].write_text(page(samples, sizes))
        _print_samples(samples, sizes)
    evaluation_file.write(files[0], evaluation)
    files += report.plot_all(predictions, evaluation, task.groups, folder)
    print("Written:", *map(str, files))
    print("Your own model and choices: docs/policies.md")


def _has_line(steerer: Steerer, task) -> bool:
    """Whether there is something between users of different groups."""
    return steerer.policy.latent == INFERRED and len(task.groups) > 1


def _method(config, steerer: Steerer, task):
    """Predictions of test choices, and what writes for test users."""
    settings = config["eval"]
    if _METHOD.value == "in-context":
        in_context = InContext(steerer.language, task)
        return in_context.predict(settings["num_context"]), in_context
    by_reward = _METHOD.value == "rerank"
    if by_reward and not config["dpo"]["reward_weight"]:
        raise InputError(
            "--method=rerank: the reward model was left behind in training; train with "
            "config.dpo.reward_weight above 0"
        )
    predict = PolicyPredictor(
        steerer.policy,
        task,
        TEST,
        num_context=tuple(settings["num_context"]),
        episodes_per_user=settings["episodes_per_user"],
        beta=config["dpo"]["beta"],
        by_reward=by_reward,
        users_at_once=settings["users_at_once"],
    )
    predictions = predict(steerer.variables, steerer.language.variables)
    return predictions, (Reranked if by_reward else Steered)(steerer, task)


def _print_samples(samples, sizes):
    """Of each group the first user."""
    for sample in {sample.group: sample for sample in samples[::-1]}.values():
        of_size = zip(sizes, sample.steered, strict=True)
        texts = {f"after {n} choices": text for n, text in of_size}
        print(f"\nA user of group {sample.group}:")
        print(side_by_side(sample.prompt, {"language model": sample.reference} | texts))


def evaluate_reward(config, run_dir: epath.Path):
    """Of a reward model."""
    predictor = Predictor.load(run_dir)
    task = build_task(config)
    settings = config["eval"]
    sizes = tuple(settings["num_context"])
    predict = scores.FewShotPredictor(
        predictor.model,
        task,
        TEST,
        num_context=sizes,
        episodes_per_user=settings["episodes_per_user"],
        num_samples=settings["num_samples"],
        deterministic=predictor.deterministic,
        key=jax.random.key(_EVALUATION_SEED),
    )
    predictions = predict(predictor.variables)
    evaluation = scores.evaluation(
        predictions, task, sizes, num_resamples=settings["num_resamples"]
    )
    evaluation_file.write(run_dir / "evaluation.json", evaluation)
    print(report.table(evaluation))
    pictures = report.plot_all(predictions, evaluation, task.groups, run_dir)
    if isinstance(task, TwoTypes):
        pictures.append(run_dir / "rewards.png")
        _plot_rewards(predictor, task, sizes, pictures[-1])
    print("Written:", *(str(p) for p in [run_dir / "evaluation.json", *pictures]))


def _plot_rewards(predictor: Predictor, task: TwoTypes, sizes, path, users: int = 20):
    """Curves of the first test users of each type, after each context size."""
    y = np.linspace(0, 1, 101, dtype=np.float32)
    options = Options(y[:, None], np.full(len(y), -1, np.int32))

    @jax.jit
    def curves_of(user):
        key = jax.random.key(_EVALUATION_SEED)
        episode = task.test_episode((), TEST, user, key).episode

        def at_size(n):
            first = jnp.arange(episode.context.mask.shape[0]) < n
            context = episode.context._replace(mask=first)
            return predictor.mean_rewards(context, options)

        return episode.group, jax.vmap(at_size)(jnp.array(sizes))

    group, curves = jax.lax.map(curves_of, jnp.arange(10 * users))
    by_type = [np.asarray(curves)[np.asarray(group) == t][:users] for t in (0, 1)]
    report.plot_rewards(by_type, y, sizes, path)


def compare(names: list[str]):
    """Prints one table of several runs and draws one picture."""
    runs = {}
    for name in names:
        path = epath.Path(name) / "evaluation.json"
        if not path.exists():
            raise InputError(
                f"{path}: no such file; run python -m launch.evaluate --workdir={name}"
            )
        runs[epath.Path(name).name] = evaluation_file.read(path)
    sizes = {tuple(run["n_context"]) for run in runs.values()}
    if len(sizes) > 1:
        raise InputError(f"--compare: the runs have different context sizes: {sizes}")
    out = epath.Path(_OUT.value or epath.Path(names[0]) / "compare.png")
    print(report.compare_table(runs))
    report.plot_accuracy(runs, out)
    print("Written:", out)


def main(argv):
    """Scores one run, or compares several."""
    if _COMPARE.value:
        if len(argv) < 2:
            raise InputError("--compare: name the run directories after it")
        compare(argv[1:])
    elif _WORKDIR.value:
        evaluate(epath.Path(_WORKDIR.value).absolute())
    else:
        raise InputError("give --workdir=DIR, or --compare DIR DIR ...")


if __name__ == "__main__":
    command_line.run(main)
