"""Asks a person which options they want: `fsa ask --workdir=DIR ...`.

Shows two options at a time, the two whose answer tells most about the person, and takes
a key press: 1 or 2 for the better one, T for a tie, S to skip, Backspace to undo, Q to
end. After each answer it shows what the person is expected to want, and how sure that
is. Answers are saved as a table of choices, which `fsa predict --context` and
`fsa prepare --choices` read, after each of them: Ctrl-C loses nothing.

    fsa ask --workdir=runs/mine --out=me.csv

    --options=FILE    a table of what to ask about (column option); by default
                      some items of the run's dataset
    --choices=FILE    what the same person told before, kept in --out
    --random          ask in a random order, to compare
    --page            ask in the browser instead, on a page of this machine
    --demo            the same with a small run that is installed with fsa

Answers can also be piped, one a line: 1, 2, t, s, undo or q.
"""

import os
import shutil
from typing import Any

from absl import flags

from fsa import bars
from fsa.commands import asked_options, command_line, interview, key_presses
from fsa.commands.interview import FIRST, SECOND, SKIP, TIE, Answer, Interview
from fsa.commands.told_table import ToldTable, at_its_option, check_characters
from fsa.data import files
from fsa.data.columns import read_options
from fsa.errors import InputError, missing_extra
from fsa.inference.feedback import NotTrained, told_in_words
from fsa.inference.option_lookup import BadOption
from fsa.inference.ranker import Ranker
from fsa.models.linear_reward import LinearRewardModel
from fsa.parallel.preemption import Interrupted
from fsa.training.compile_cache import keep_compiled

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory.")
_OPTIONS = flags.DEFINE_string("options", None, "Table of what to ask about.")
_CHOICES = flags.DEFINE_string("choices", None, "Table of answers from before.")
_OUT = flags.DEFINE_string(
    "out", None, "Where to save; choices.csv, or .jsonl where options are numbers."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing --out.")
_NUM_QUESTIONS = flags.DEFINE_integer("num_questions", 10, "Number of questions.", 1)
_NUM_OPTIONS = flags.DEFINE_integer(
    "num_options",
    asked_options.NUM_OPTIONS,
    "Number of options that are drawn, without --options.",
    2,
    1000,
)
_RANDOM = flags.DEFINE_bool("random", False, "Ask in a random order.")
_USER = flags.DEFINE_string("user", "me", "The person's name, in the table.")
_EMBEDDER = flags.DEFINE_string("embedder", None, "Folder of an embedding model.")
_DATA = flags.DEFINE_string(
    "data", None, "Where the dataset of the run is, if it has moved."
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the options that are drawn, and of --random.", 0, 2**31 - 1
)
_PAGE = flags.DEFINE_bool("page", False, "Ask in the browser; see docs/ask.md.")
_DEMO = flags.DEFINE_bool("demo", False, "Ask about the installed example, by --page.")
_OPEN = flags.DEFINE_bool("open", False, "Open the page in the browser.")
_PORT = flags.DEFINE_integer(
    "port", None, "Port of the page; the first free one from 8000 on.", 0, 65535
)

_UNDO, _QUIT = key_presses.BACKSPACE, "q"
_WIDTH = 100
_TABLES = (".csv", ".jsonl")


def main(argv):
    """Asks, shows the ranking and saves the choices."""
    command_line.refuse_arguments(argv)
    if _PAGE.value or _DEMO.value:
        return _show_page()
    command_line.require(_WORKDIR)
    if _OUT.value:
        command_line.make_place(_OUT.value, "out", _OVERWRITE.value, endings=_TABLES)
    check_characters(_USER.value, "--user")
    earlier = ToldTable(_CHOICES.value)
    with keep_compiled(_WORKDIR.value):
        with bars.Bar(1, "Preparing", "part") as bar:
            bar.say("loading the model")
            ranker = Ranker.load(
                _WORKDIR.value, embedder=_EMBEDDER.value, data=_DATA.value
            )
            options, ids = _options(ranker)
            path = _place(options)
            table = _Table(path, earlier.rows_to_keep(path), ids)
            talk = Interview(
                ranker,
                options,
                earlier=earlier.arguments,
                random=_RANDOM.value,
                seed=_SEED.value,
            )
            bar.say("finding the first question")
            _check_asks(talk, earlier)
            bar.advance()
        try:
            _ask(talk, table, isinstance(ranker.model, LinearRewardModel))
        except KeyboardInterrupt as stop:
            message = f"interrupted; {table.said}"
            raise Interrupted(message, together=False) from stop
    print(f"\n{table.said[0].upper()}{table.said[1:]}")
    if table.num_rows:
        print(
            f"next: fsa predict --workdir={_WORKDIR.value} --context={table.path} "
            "--options=FILE"
        )


def _show_page() -> None:
    """Asks in the browser."""
    try:
        from fsa.commands import ask_page
    except ModuleNotFoundError as error:
        raise missing_extra("page", "`page`", error) from error
    if _OUT.value:
        raise InputError("`out`: the page offers the table to download; leave it out")
    if not _DEMO.value:
        command_line.require(_WORKDIR)
    ask_page.show(
        None if _DEMO.value else _WORKDIR.value,
        options_of=_options,
        earlier=[row for _, row in files.read_rows(_CHOICES.value)]
        if _CHOICES.value
        else [],
        embedder=_EMBEDDER.value,
        data=_DATA.value,
        name=_USER.value,
        port=_PORT.value,
        open_browser=_OPEN.value,
    )


def _ask(talk: Interview, table: "_Table", takes_ties: bool) -> None:
    """Asks until the questions are answered or the person ends it."""
    print(_opening(len(talk.options), takes_ties))
    before, prompt = talk.certainty(), None
    while talk.num_answered < _NUM_QUESTIONS.value:
        pair = talk.question()
        if pair is None:
            print("\nThere are no more questions about these options.")
            return
        first, second = (talk.options[i] for i in pair)
        title = f"Question {talk.num_answered + 1} of {_NUM_QUESTIONS.value}"
        if interview.prompt_of(first) != prompt:
            prompt = interview.prompt_of(first)
            title += f": {prompt}" * bool(prompt)
        print(interview.shown_question(title, first, second, _width()))
        key = _answer(bool(talk.answers))
        if key == _QUIT:
            return
        if key == _UNDO:
            talk.undo()
            print("The last answer is undone.")
        elif key == TIE and not takes_ties:
            talk.answer(pair, SKIP)
            print("Skipped: this model was not made to take ties.")
            continue
        else:
            talk.answer(pair, key)
        if key == SKIP:
            continue
        table.save(talk)
        _show(talk, before)


def _show(talk: Interview, before: float | None) -> None:
    """Prints what follows from the answers, and how sure that is."""
    ranking = talk.ranking()
    told = told_in_words(ranking.counts)
    print(f"\nAfter {told}, how likely an option is chosen over another one:")
    print(interview.shown_ranking(ranking, _width()))
    now = talk.certainty()
    if now is not None:
        print(
            f"Which of two you choose is expected to be predicted {100 * now:.0f}% of "
            f"the time; {100 * before:.0f}% before."
        )


def _answer(may_undo: bool) -> str:
    """Waits for one of the keys that count."""
    keys = [FIRST, SECOND, TIE, SKIP, *[_UNDO] * may_undo, _QUIT]
    while True:
        print("Your answer: ", end="", flush=True)
        key = key_presses.read()
        key = _QUIT if key == key_presses.END else key
        print(interview.text_of(key)[:20], flush=True)
        if key in keys:
            return key
        if key == _UNDO:
            print("There is no answer to undo.")
        else:
            print("Press 1, 2, T, S, Backspace or Q.")


def _opening(num_options: int, takes_ties: bool) -> str:
    tie = "they are equally good" if takes_ties else "the same as S: no ties here"
    return (
        f"Which would you choose? There are {num_options} options. Press\n"
        "  1 or 2     the one that you would choose\n"
        f"  T          {tie}\n"
        "  S          skip the question\n"
        "  Backspace  undo the last answer\n"
        "  Q          end"
    )


def _width() -> int:
    return min(_WIDTH, shutil.get_terminal_size().columns)


def _options(ranker: Ranker) -> tuple[list[Any], list[str] | None]:
    """Returns the options, and their ids if they are items of the dataset."""
    if _OPTIONS.value:
        return asked_options.read(_OPTIONS.value), None
    return asked_options.of_run(ranker, count=_NUM_OPTIONS.value, seed=_SEED.value)


def _check_asks(talk: Interview, earlier: ToldTable) -> None:
    """Raises InputError, which names a flag or a row, if no question can be asked."""
    try:
        pair = talk.question() if talk.can_ask else None
        if pair:
            talk.ranking()
    except (BadOption, NotTrained) as error:
        raise _at_its_flag(error, earlier) from error
    except InputError as error:
        if not (talk.can_choose or _RANDOM.value):
            raise InputError(f"{error}; ask in a random order by `random`") from error
        raise
    if pair is None:
        raise InputError(
            "nothing to ask: give at least two different options that answer the same "
            "prompt, and that `choices` has not compared yet"
        )


def _at_its_flag(error: BadOption | NotTrained, earlier: ToldTable) -> InputError:
    if error.argument != "options":
        return earlier.at_its_row(error)
    if not _OPTIONS.value:
        return error
    numbers = [number for number, _ in read_options(_OPTIONS.value, ["option"])]
    return at_its_option(error, _OPTIONS.value, numbers)


def _place(options: list[Any]) -> str:
    """Returns where to save, which is checked before anything is asked."""
    numbers = not all(isinstance(each, str | tuple) for each in options)
    path = _OUT.value or ("choices.jsonl" if numbers else "choices.csv")
    if numbers and path.endswith(".csv"):
        raise InputError(
            f"`out`={path}: options are lists of numbers, which a .csv does not hold; "
            "name a .jsonl"
        )
    if not _OUT.value:
        command_line.make_place(path, "out", _OVERWRITE.value, endings=_TABLES)
    return path


class _Table:
    """The table of choices on the disk.

    Attributes:
      path: of the file.
      num_rows: rows in it.
    """

    def __init__(self, path: str, earlier: list[files.Row], ids: list[str] | None):
        """Writes nothing yet.

        Args:
          path: of the file.
          earlier: rows that it begins with.
          ids: of the options, if they have any.
        """
        self.path, self.num_rows = path, 0
        self._earlier = [{"user": _USER.value, **row} for row in earlier]
        self._ids = ids

    @property
    def said(self) -> str:
        """What the file holds, in words."""
        if not self.num_rows:
            return "nothing was answered, and nothing saved"
        answers = f"{self.num_rows} answer{'s' * (self.num_rows != 1)}"
        return f"saved {answers} in {self.path}"

    def save(self, talk: Interview) -> None:
        """Writes all answers; if the only one is undone, the file is removed."""
        rows = [*self._earlier, *(self._row(talk.options, each) for each in talk.kept)]
        if rows:
            write = files.write_csv if self.path.endswith(".csv") else files.write_jsonl
            write(self.path, rows)
        elif self.num_rows:
            os.remove(self.path)
        self.num_rows = len(rows)

    def _row(self, options: list[Any], answer: Answer) -> files.Row:
        sides = dict(zip(("chosen", "rejected"), answer.chosen, strict=True))
        row = {"user": _USER.value}
        if prompt := interview.prompt_of(options[answer.pair[0]]):
            row["prompt"] = prompt
        for name, i in sides.items():
            option = options[i]
            row[name] = option[1] if isinstance(option, tuple) else option
        if answer.key == TIE:
            row["tie"] = True
        if self._ids:
            row |= {f"{name}_id": self._ids[i] for name, i in sides.items()}
        return row
