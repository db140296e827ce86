"""Measures what PEFT predicts with the adapters that fsa exports.

    python -m benchmarks.peft_choices --workdir=RUN --engine=ENV/bin/python \\
      [--people=8] [--known=10]

RUN is a policy with modulations of low rank; ENV has torch, transformers and peft. For
some test people of each group, the adapter of their first `--known` choices is written,
and that of these choices reversed, and both libraries compute the implicit rewards of
the responses of their other choices. Prints the choices that are predicted with the
adapter and without one (by the language model's own probabilities), how many
predictions turn when the choices are reversed, and the largest difference of a log
ratio between the libraries, in nats.
"""

import json
import os
import pathlib
import subprocess
import tempfile
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from etils import epath

from fsa import episodes, text_tables
from fsa.data.tasks.pairs import PairTask
from fsa.evaluation.methods import contexts_after
from fsa.inference.steerer import Steerer
from fsa.language.token_table import TokenTable
from fsa.recipes import config
from fsa.recipes.policy_run import load_task

# Reads the folder of a language model and, for each person, adapters and responses
# with the places where these start; writes log-probabilities `[A + 1, responses]` of
# A adapters and of none.
_THEIRS = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
asked = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32)
model.eval()

@torch.no_grad()
def log_probs(model, responses):
    found = []
    for tokens, start in responses:
        tokens = torch.tensor(tokens)
        every = model(tokens[None]).logits[0, :-1].double().log_softmax(-1)
        own = every[torch.arange(len(tokens) - 1), tokens[1:]]
        found.append(own[start - 1 :].sum().item())
    return found

found = []
for person in asked["people"]:
    of_person = []
    for adapter in person["adapters"]:
        adapted = PeftModel.from_pretrained(model, adapter).eval()
        of_person.append(log_probs(adapted, person["responses"]))
        model = adapted.unload()
    found.append([*of_person, log_probs(model, person["responses"])])
json.dump(found, open(sys.argv[1], "w"))
"""


class LogProbs(NamedTuple):
    """Log-probabilities of responses to target choices, of one person.

    Attributes:
      steered: `[M, 2]`, chosen and rejected, with the person's adapter.
      reversed: the same, with the adapter of the reversed choices.
      plain: the same, without an adapter.
    """

    steered: np.ndarray
    reversed: np.ndarray
    plain: np.ndarray

    def margins(self, log_probs: np.ndarray) -> np.ndarray:
        """Returns the differences `[M]` of log ratios to the plain model, in nats."""
        ratio = log_probs - self.plain
        return ratio[:, 0] - ratio[:, 1]


def measure(
    steerer: Steerer, task: PairTask, users: np.ndarray, n: int, python: str
) -> tuple[list[LogProbs], list[LogProbs]]:
    """Computes log-probabilities of some test users' target choices twice.

    Args:
      steerer: the policy.
      task: the task that has the users.
      users: `[U]`, indices of test users.
      n: the number of choices that are known of each.
      python: the Python that has peft.

    Returns:
      U log-probabilities by fsa, and U by PEFT with the adapters that fsa writes.
    """
    context, groups = contexts_after(task, users, n)
    both = context, episodes.reverse(context)
    latents = np.stack([steerer.latents(each, groups) for each in both], axis=1)
    tables = [_responses(task, user) for user in users]
    ours = [
        _of_person(steerer, table, z) for table, z in zip(tables, latents, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        people = []
        for number, (table, z) in enumerate(zip(tables, latents, strict=True)):
            folders = [folder / f"{number}-{name}" for name in ("own", "reversed")]
            steerer.save_adapters(z, folders)
            responses = [
                [table[i].tolist(), int(table.start[i])]
                for i in range(len(table.start))
            ]
            people.append({"adapters": [*map(str, folders)], "responses": responses})
        asked = {"folder": str(steerer.language.folder), "people": people}
        found = _run(python, asked, folder / "found.json")
    theirs = [LogProbs(*np.reshape(each, (3, -1, 2))) for each in found]
    return ours, theirs


def _responses(task: PairTask, user: int) -> TokenTable:
    """Returns the tokens of a user's target choices, chosen and rejected in turn."""
    tokens, items = task.responses.tokens, task.test_items("test", user)[1].ravel()
    return TokenTable.of([(tokens[i], tokens.start[i]) for i in items])


def _of_person(steerer: Steerer, table: TokenTable, latents: np.ndarray) -> LogProbs:
    size = len(table.start)
    steered = [steerer.log_probs(table, np.repeat(z[None], size, 0)) for z in latents]
    found = [*steered, steerer.log_probs(table, None)]
    return LogProbs(*(each.reshape(-1, 2) for each in found))


def _run(python: str, asked: dict[str, Any], out: pathlib.Path) -> Any:
    command = [python, "-c", _THEIRS, str(out)]
    # On a busy machine, threads of a small model wait for each other most of the time.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    text = json.dumps(asked)
    subprocess.run(command, input=text, text=True, env=environment, check=True)
    return json.loads(out.read_text())


def figures(people: list[LogProbs]) -> dict[str, float]:
    """Returns means over people, in percent."""

    def mean(of_person) -> float:
        return 100 * float(np.mean([np.mean(of_person(each)) for each in people]))

    return {
        "with the adapter": mean(lambda x: x.margins(x.steered) > 0),
        "without": mean(lambda x: x.plain[:, 0] > x.plain[:, 1]),
        "turn if reversed": mean(
            lambda x: (x.margins(x.steered) > 0) != (x.margins(x.reversed) > 0)
        ),
    }


def largest_difference(ours: list[LogProbs], theirs: list[LogProbs]) -> float:
    """Returns the largest difference of a log ratio between two lists, in nats."""
    return max(
        float(np.abs(a.steered - a.plain - (b.steered - b.plain)).max())
        for a, b in zip(ours, theirs, strict=True)
    )


def main(argv):
    """Measures some people of a run, and prints a table."""
    del argv
    steerer, task = _load(_WORKDIR.value)
    group_of = task.data.users["test"].group
    users = np.concatenate(
        [
            [user for user in task.users("test") if group_of[user] == group][
                : _PEOPLE.value
            ]
            for group in range(len(task.groups))
        ]
    )
    ours, theirs = measure(steerer, task, users, _KNOWN.value, _ENGINE.value)
    rows = [["choices, %", *figures(ours)]]
    for index, group in enumerate(task.groups):
        for name, found in (("fsa", ours), ("PEFT", theirs)):
            own = [x for x, u in zip(found, users, strict=True) if group_of[u] == index]
            cells = [f"{value:.1f}" for value in figures(own).values()]
            rows.append([f"{group}, {name}", *cells])
    print(text_tables.markdown(rows))
    print(f"largest difference of a log ratio: {largest_difference(ours, theirs):.1e}")


def _load(workdir: str) -> tuple[Steerer, PairTask]:
    steerer = Steerer.load(workdir)
    return steerer, load_task(config.read(epath.Path(workdir)), steerer.language)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Run of a policy.", required=True)
    _ENGINE = flags.DEFINE_string("engine", None, "Python with peft.", required=True)
    _PEOPLE = flags.DEFINE_integer("people", 8, "People of each group.", 1)
    _KNOWN = flags.DEFINE_integer("known", 10, "Choices known of each.", 0)
    app.run(main)
