"""Measures how fast the page of `fsa ask --page` follows, in a real Chromium.

    python -m benchmarks.page --workdir=runs/demo
    python -m benchmarks.page --language_model=FOLDER

The first measures, for a run of a reward model, the time from a key press until the
page has drawn what follows from the answer: the browser's own performance marks, from
the answer being sent to the frame in which the map, the ranking and the next question
are new (the map then moves there for 0.4 s). The second measures the time from a click
on *Answer* until the first words for the first person are shown, by an untrained policy
on a language model: its speed does not depend on what it has learned.

On a machine that does other things as well, the processor time of this process for an
answer, which is printed too, says more: it is what the server takes, and the program
that presses the keys.

Needs the extra `browser`, and a Chromium with its driver.
"""

import os
import pathlib
import tempfile
import time

import jax
import numpy as np
from absl import flags

from benchmarks.chromium import Screen, chromium, serving
from fsa import text_tables
from fsa.commands import command_line
from fsa.inference.steerer import Steerer
from fsa.language.language_model import LanguageModel
from fsa.models.policy import Policy
from fsa.models.reward import RewardModel
from fsa.serving.page import crowd
from fsa.serving.page.app import make_page_app
from fsa.serving.page.page_model import PageModel
from fsa.serving.people import PeopleStore
from fsa.serving.person_model import PersonModel
from fsa.serving.service import Limits, Service
from fsa.training.compile_cache import keep_compiled

_WORKDIR = flags.DEFINE_string("workdir", None, "Run of a reward model.")
_LANGUAGE = flags.DEFINE_string("language_model", None, "Hugging Face folder.")
_ANSWERS = flags.DEFINE_integer("answers", 40, "Answers that are timed.", 1)
_PROMPTS = flags.DEFINE_integer("prompts", 5, "Prompts that are timed.", 1)

_WARM = 3
_MODULATIONS = (("attention/out", "low_rank(8)"), ("mlp/down", "low_rank(8)"))
_OPTIONS = [
    ("What is a good breakfast?", text)
    for text in ("Porridge with apples.", "Nothing but coffee.", "Eggs, and bread.")
]


def time_answers(folder: pathlib.Path) -> tuple[list[float], float]:
    """Returns milliseconds from an answer to the picture, and of the processor."""
    model = PersonModel.load(_WORKDIR.value)
    options = np.random.default_rng(0).uniform(size=(40, model.ranker.num_features))
    people = crowd.load(model, _WORKDIR.value)
    page = PageModel(model, options.round(3).tolist(), people, title="demo")
    app = _app(page, folder)
    with chromium(folder) as driver, serving(app) as address:
        screen = Screen(driver, address)
        for turn in range(_WARM + _ANSWERS.value):
            if turn == _WARM:
                begin = time.process_time()
            # Not more answers than one padded size holds, as in the first minute.
            undo = turn % 20 >= 10
            screen.press(
                "BACKSPACE" if undo else "12"[turn % 2], gives=-1 if undo else 1
            )
        busy = 1000 * (time.process_time() - begin) / _ANSWERS.value
        return _measured(screen, "answer to picture")[-_ANSWERS.value :], busy


def time_first_words(folder: pathlib.Path) -> tuple[list[float], list[float]]:
    """Returns milliseconds from a click to the first words.

    The first list is of a question while nothing is written, the second one of
    questions that end the texts of the question before.
    """
    steerer = _untrained(_LANGUAGE.value)
    model = PersonModel.of_policy(steerer, deterministic=False)
    page = PageModel(model, _OPTIONS, crowd.load(model, ""), title="policy")
    app = _app(page, folder)
    with chromium(folder) as driver, serving(app) as address:
        screen = Screen(driver, address)
        screen.press("1", gives=1)
        for turn in range(1 + _PROMPTS.value):
            script = "document.querySelector('#question').value = arguments[0]"
            screen.js(script, f"What is the number {turn} good for?")
            screen.click(screen.one("#send"))
            # The rest is not waited for: the next prompt ends it.
            begun = 3 * (turn + 1)
            screen.wait(lambda n=begun: len(_measured(screen, "first words")) >= n)
        found = np.array(_measured(screen, "first words")).reshape(-1, 3)
        alone, *others = found.min(axis=1).tolist()
        return [alone], others


def _app(page: PageModel, folder: pathlib.Path):
    service = Service(page.model, PeopleStore(folder / "people.sqlite"), Limits())
    app, writer = make_page_app(page, service, person="me")
    if writer:
        # As the command does before it says where the page is.
        writer.warm_up()
    return app


def _measured(screen: Screen, name: str) -> list[float]:
    return screen.js(
        "return performance.getEntriesByName(arguments[0]).map((x) => x.duration)", name
    )


def _untrained(folder: str) -> Steerer:
    language = LanguageModel.load(folder)
    reward = RewardModel(hidden=64, latent_dim=16)
    policy = Policy(language.model, reward, _MODULATIONS)
    base, width = language.variables, language.model.width
    variables = policy.init(jax.random.key(0), base, width)
    variables = {
        **variables,
        "statistics": {"options": {"mean": np.zeros(width), "std": np.ones(width)}},
    }
    return Steerer(policy, variables, language, "mean", (128, 256, 512))


def main(argv):
    """Prints a table of the times."""
    command_line.refuse_arguments(argv)
    cells = [["", "median, ms", "90 %, ms", "longest, ms", "times"]]
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        if _WORKDIR.value:
            with keep_compiled(_WORKDIR.value):
                times, busy = time_answers(place)
                cells.append(_row("answer to picture", times))
                print(f"processor time of an answer: {busy:.0f} ms\n")
        if _LANGUAGE.value:
            alone, others = time_first_words(place)
            cells.append(_row("first words", alone))
            cells.append(_row("first words, ending other texts", others))
    load = os.getloadavg()[0]
    print(text_tables.markdown(cells))
    print(f"\n{os.cpu_count()} cores, load average {load:.1f}")


def _row(name: str, times: list[float]) -> list[str]:
    middle, high = np.percentile(times, [50, 90])
    shown = [f"{x:.0f}" for x in (middle, high, max(times))]
    return [name, *shown, str(len(times))]


if __name__ == "__main__":
    command_line.run(main)
