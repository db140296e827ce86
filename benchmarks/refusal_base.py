"""A folder of sound inputs, made by the commands, for benchmarks/refusals.py.

Everything is tiny: tables of made-up people, a dataset with vectors and one of sampled
texts, a language model, and a run of each kind. Runs record the absolute path of their
data, so that the folder is to be used where it was made.
"""

import itertools
import json
import pathlib
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fsa.data.sources import corpus

NUM_ITEMS, FEATURES = 20, 3
PEOPLE = {"train": 16, "valid": 6, "test": 4}
PROMPTS = [
    "review the novel :",
    "assess the park :",
]

_REWARD_MODEL = """
from fsa.recipes.presets import people


def get_config():
    config = people("np-btl")
    config.task.path = "data/people"
    config.task.train_on = "ratings"
    config.task.min_choices = 3
    config.task.max_context = 3
    config.task.num_targets = 4
    config.model.hidden = 8
    config.model.latent_dim = 2
    config.objective.num_samples = 2
    config.optimizer.warmup_steps = 2
    config.train.steps = 8
    config.train.batch_size = 8
    config.train.steps_per_call = 2
    config.train.validate_every = 4
    config.eval.num_context = (0, 2)
    config.eval.num_targets = 3
    config.eval.episodes_per_user = 2
    config.eval.valid_episodes_per_user = 2
    config.eval.num_samples = 4
    config.eval.num_resamples = 20
    return config


def get_sweep():
    return [{"seed": 0}]
"""

_LANGUAGE_MODEL = """
from fsa.recipes.presets import language_model


def get_config():
    config = language_model()
    config.task.sequences = 64
    config.transformer.width = 16
    config.transformer.num_layers = 2
    config.transformer.num_kv_heads = 2
    config.transformer.head_dim = 6
    config.transformer.mlp_width = 20
    config.optimizer.warmup_steps = 2
    config.train.steps = 8
    config.train.batch_size = 8
    config.train.steps_per_call = 2
    config.train.validate_every = 4
    config.eval.sequences = 16
    return config
"""

_POLICY = """
from fsa.recipes.presets import policy


def get_config():
    config = policy("np-dpo")
    config.task.path = "data/choices"
    config.task.separator = " "
    config.task.max_context = 3
    config.task.num_targets = 2
    config.task.max_prompt = 8
    config.task.max_response = 12
    config.task.buckets = (20,)
    config.language_model.path = "language"
    config.model.hidden = 8
    config.model.latent_dim = 3
    config.objective.num_samples = 2
    config.policy.modulations = (("attention/out", "low_rank(2)"),)
    config.dpo.reward_weight = 1.0
    config.optimizer.warmup_steps = 1
    config.train.steps = 8
    config.train.batch_size = 4
    config.train.steps_per_call = 2
    config.train.validate_every = 4
    config.eval.num_context = (0, 2)
    config.eval.num_targets = 3
    config.eval.num_resamples = 20
    config.eval.users_at_once = 4
    return config
"""

CONFIGS = {
    "mine.py": _REWARD_MODEL,
    "language.py": _LANGUAGE_MODEL,
    "policy.py": _POLICY,
}

PREPARE_PEOPLE = [
    "--ratings=ratings.jsonl",
    "--vectors=vectors.npy",
    "--vector_ids=ids.jsonl",
]
PREPARE_CHOICES = [
    "--samples=samples.jsonl",
    "--attributes=corpus_formality",
    "--users=train:4,valid:2,test:3",
    "--num_choices=train:5,valid:5,test:5",
]
SAMPLE = [
    "--model=language",
    "--separator= ",
    "--num_samples=6",
    "--max_new_tokens=9",
]

# The commands that make the folder, in order, by what they make.
REWARD_MODEL_STEPS = (
    ("prepare", *PREPARE_PEOPLE, "--out=data/people"),
    ("train", "--config=mine.py", "--workdir=runs/reward_model"),
    ("evaluate", "--workdir=runs/reward_model"),
)
LANGUAGE_MODEL_STEPS = (
    ("train", "--config=language.py", "--workdir=runs/language_model"),
)
POLICY_STEPS = (
    ("sample", *SAMPLE, "--prompts=asked.jsonl", "--out=samples.jsonl"),
    ("prepare", *PREPARE_CHOICES, "--out=data/choices"),
    ("train", "--config=policy.py", "--workdir=runs/policy"),
)

# Runs `fsa ARGUMENTS` in a folder, and raises an exception if it fails.
Command = Callable[[pathlib.Path, tuple[str, ...]], None]


def make(folder: pathlib.Path, command: Command) -> None:
    """Fills an empty folder by the commands."""
    write_inputs(folder)
    for step in (*REWARD_MODEL_STEPS, *LANGUAGE_MODEL_STEPS):
        command(folder, step)
    (folder / "runs" / "language_model" / "model").rename(folder / "language")
    for step in POLICY_STEPS:
        command(folder, step)


def write_inputs(folder: pathlib.Path) -> None:
    """Writes the tables, vectors and configs that the commands start from."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    items = [(f"item-{i}", i / (NUM_ITEMS - 1)) for i in range(NUM_ITEMS)]
    vectors = np.array([[x, x * x, 1 - x] for _, x in items], np.float32)
    np.save(folder / "vectors.npy", vectors)
    answers = [text for _, text in corpus.texts(1, 60) if len(text.split()) < 10][:4]
    tables = {
        "ids": [{"id": name} for name, _ in items],
        "ratings": list(_ratings(items)),
        "choices": list(_choices(items)),
        "context": _pairs(items, 18, 3) + _pairs(items, 12, 9),
        "options": [{"option": f"item-{i}"} for i in (0, 7, 13, 19)],
        "asked": [
            {"prompt": prompt, "split": split}
            for split, prompts in corpus.split_prompts(0).items()
            for prompt in prompts[:10]
        ],
        "prompts": [{"prompt": prompt} for prompt in PROMPTS],
        "person": [
            {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            for prompt, chosen, rejected in zip(
                PROMPTS, answers[:2], answers[2:], strict=True
            )
        ],
    }
    for name, rows in tables.items():
        write_table(folder / f"{name}.jsonl", rows)


def write_table(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a .jsonl file; numbers that JSON lacks are written as Python does."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _people() -> Iterable[tuple[str, str, int]]:
    for split, count in PEOPLE.items():
        for number in range(count):
            yield f"{split}-{number}", split, (1, -1)[number % 2]


def _ratings(items):
    """People who like high or low numbers rate items."""
    rng = random.Random(0)
    for user, split, likes in _people():
        for name, x in rng.sample(items, 14):
            yield {
                "user": user,
                "prompt": "",
                "item": name,
                "item_id": name,
                "value": likes * x,
                "split": split,
                "group": "high" if likes > 0 else "low",
            }


def _choices(items):
    rng = random.Random(1)
    for user, split, likes in _people():
        pairs = rng.sample(list(itertools.combinations(items, 2)), 12)
        for (low, _), (high, _) in pairs:
            chosen, rejected = (high, low) if likes > 0 else (low, high)
            row = {"user": user, "prompt": "", "chosen": chosen, "rejected": rejected}
            yield {**row, "split": split}


def _pairs(items, chosen, rejected):
    return [{"chosen": items[chosen][0], "rejected": items[rejected][0]}]
