"""`fsa ask`: questions in a terminal, or piped, and the table of choices they give."""

import dataclasses
import datetime
import decimal
import fcntl
import io
import itertools
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import fsa
from fsa.commands import interview, key_presses
from fsa.commands.interview import FIRST, SKIP, TIE, Interview
from fsa.data import files
from fsa.errors import InputError
from fsa.inference.ranker import Ranker

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPT = "What to drink?"
# Strong, sweet; one with what a terminal would obey, one of wide characters.
DRINKS = {
    "espresso": (3, 0),
    "latte": (1, 1),
    "cocoa \x1b[2J\x1b]0;mine\x07": (0, 3),
    "紅茶" * 60: (1, 0),
    "iced, coffee": (2, 1),
    "cola\nlight": (1, 3),
    "water": (0, 0),
}
TINY = {
    "model": {"hidden": 8, "latent_dim": 2, "num_steps": 4, "num_sweeps": 0},
    "task": {"num_targets": 4, "max_context": 2},
    "train": {"steps": 2, "validate_every": 2, "batch_size": 4, "steps_per_call": 1},
    "eval": {
        "num_context": (0, 2),
        "num_targets": 4,
        "valid_episodes_per_user": 1,
    },
}


def tiny(config):
    for section, fields in TINY.items():
        for name, value in fields.items():
            config[section][name] = value
    return config


def rows():
    for user in range(9):
        for i, a in enumerate(DRINKS):
            for b in list(DRINKS)[i + 1 :]:
                chosen, rejected = (a, b) if user % 2 else (b, a)
                split = ("train", "valid", "test")[user % 3]
                yield dict(
                    user=f"u{user}",
                    split=split,
                    prompt=PROMPT,
                    chosen=chosen,
                    rejected=rejected,
                )


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compile):
    """A run of `bayes` on texts, hardly trained."""
    folder = tmp_path_factory.mktemp("ask") / "run"
    fsa.fit(
        tiny(fsa.presets.people("bayes")),
        folder,
        choices=list(rows()),
        embedder=lambda texts: [DRINKS[text] for text in texts],
    )
    return folder


@pytest.fixture(scope="module")
def ranker(run):
    return Ranker.load(run)


@pytest.fixture
def ask(launch, run, tmp_path, monkeypatch):
    """Runs `fsa ask` with answers, one a line; returns how it ended and the table."""

    def ask(answers, *more, out="me.csv", workdir=run):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(answers)))
        path = tmp_path / out
        finished = launch("ask", f"--workdir={workdir}", f"--out={path}", *more)
        table = [row for _, row in files.read_rows(path)] if path.exists() else []
        return finished, table

    return ask


def shown(out):
    """The two options of each question on the screen."""
    return re.findall(r"^  1  (.*(?:\n {5}.*)*)\n  2  (.*(?:\n {5}.*)*)", out, re.M)


def beginning(text):
    """Of an option as it is shown, which may be in several lines."""
    return "".join(interview.text_of(text).split())[:5]


def test_answers_become_choices_that_are_read_again(ask, run, tmp_path, launch):
    finished, table = ask(["1", "2", "1"], "--num_questions=3")
    assert finished.code == 0
    asked = shown(finished.out)
    assert len(asked) == 3 == len(table) and len(set(asked)) == 3
    chosen = [pair[i] for pair, i in zip(asked, (0, 1, 0), strict=True)]
    for row, seen in zip(table, chosen, strict=True):
        assert {row["chosen"], row["rejected"]} <= set(DRINKS)
        assert row["prompt"] == PROMPT and row["user"] == "me"
        assert beginning(seen) == beginning(row["chosen"])
    table_path = tmp_path / "me.csv"
    options = tmp_path / "options.csv"
    files.write_csv(options, [{"option": "espresso"}, {"option": "water"}])
    predicted = launch(
        "predict",
        f"--workdir={run}",
        f"--context={table_path}",
        f"--options={options}",
    )
    assert predicted.code == 0 and "After 3 choices" in predicted.out
    prepared = launch("prepare", f"--choices={table_path}", f"--out={tmp_path / 'd'}")
    assert prepared.code == 0, prepared.err
    # As the ranker itself would have asked.
    told = dict(chosen=[], rejected=[])
    ranker = Ranker.load(run)
    options = [(PROMPT, text) for text in sorted(DRINKS)]
    for row in table:
        pair = ranker.next_question(options, **told)
        found = ranker.questions(options, **told)
        texts = [(row["chosen"], row["rejected"]), (row["rejected"], row["chosen"])]
        gains = {
            tuple(options[i][1] for i in pair): gain
            for pair, gain in zip(found.pairs, found.gain, strict=True)
        }
        own = next(gains[pair] for pair in texts if pair in gains)
        assert own >= pair.gain - 2e-6
        told["chosen"].append((PROMPT, row["chosen"]))
        told["rejected"].append((PROMPT, row["rejected"]))


def test_nothing_that_a_terminal_obeys_is_printed(ask):
    finished, _ = ask(["1", "2"] * 10, "--num_questions=20")
    assert "cocoa" in finished.out and "紅茶" in finished.out
    assert not set(finished.out) - {"\n"} & {chr(i) for i in (*range(32), 127, 155)}
    for line in finished.out.splitlines():
        wide = sum(unicodedata.east_asian_width(c) in "WF" for c in line)
        # The last line is a command line.
        assert len(line) + wide <= 100 or line.startswith(("next: ", "Saved "))


def test_skips_ties_and_undoing(ask):
    lines = ["1", "s", "t", "what", "", "undo", "undo", "undo", "undo", "2", "q"]
    finished, table = ask(lines)
    asked = shown(finished.out)
    # Undone questions come again, in reverse.
    assert len(asked) == 8 and len(set(asked[:4])) == 4
    assert asked[4:7] == asked[2::-1]
    assert len(table) == 1
    assert beginning(table[0]["chosen"]) == beginning(asked[0][1])
    assert finished.out.count("Your answer: ") == 11


def test_ties_are_read_again(ask, tmp_path):
    finished, table = ask(["t", "1", "t"], "--num_questions=3")
    assert finished.code == 0 and "1 choice and 2 ties" in finished.out
    assert [bool(row["tie"]) for row in table] == [True, False, True]
    before = f"--choices={tmp_path / 'me.csv'}"
    finished, more = ask(["2"], before, "--num_questions=1", out="more.csv")
    assert more[:3] == table and len(more) == 4
    assert "After 2 choices and 2 ties" in finished.out
    asked = [frozenset((row["chosen"], row["rejected"])) for row in more]
    assert len(set(asked)) == 4


def test_an_only_answer_that_is_undone_leaves_no_file(ask):
    finished, table = ask(["1", "backspace", "q"])
    assert finished.code == 0 and table == []
    assert "Saved" not in finished.out


def test_the_end_of_the_input_ends_the_questions(ask):
    finished, table = ask(["2"])
    assert finished.code == 0 and len(table) == 1


@pytest.mark.slow
def test_choices_from_before_are_kept_and_not_asked_again(ask, tmp_path):
    _, first = ask(["1"] * 4, "--num_questions=4")
    before = f"--choices={tmp_path / 'me.csv'}"
    for more in ([], ["--random"]):
        finished, second = ask(["2"] * 50, before, "--overwrite", *more, out="b.csv")
        assert finished.code == 0
        assert second[:4] == first
        pairs = [frozenset((row["chosen"], row["rejected"])) for row in second]
        assert len(pairs) == len(set(pairs)) == 14
    # All there are: with more questions, every pair is asked once.
    for more in ([], ["--random"]):
        _, every = ask(
            ["2"] * 50,
            before,
            "--overwrite",
            "--num_questions=50",
            *more,
            out="b.csv",
        )
        assert len(every) == 21


def test_files_are_replaced_only_by_a_flag(ask, tmp_path):
    (tmp_path / "me.csv").write_text("user,chosen,rejected\n")
    finished, _ = ask(["1"])
    assert finished.code == 2 and "--out" in finished.err and "exists" in finished.err
    assert (tmp_path / "me.csv").read_text() == "user,chosen,rejected\n"
    _, table = ask(["1", "q"], "--overwrite")
    assert len(table) == 1


def test_options_of_a_table(ask, tmp_path):
    path = tmp_path / "options.jsonl"
    files.write_jsonl(path, [{"option": "water"}, {"option": [0.5, 2.5]}])
    finished, _ = ask(["1"], f"--options={path}")
    assert finished.code == 2 and "--out" in finished.err
    finished, table = ask(["1", "1"], f"--options={path}", out="me.jsonl")
    assert finished.code == 0 and len(table) == 1
    assert [0.5, 2.5] in table[0].values() and "water" in table[0].values()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("beer", "row 2: option: 'beer' is not in the dataset"),
        ("water", "--choices"),
        ("\ud800", "row 2: option: is not valid Unicode"),
        (float("nan"), "row 2: option is empty"),
        (" ", "row 2: option is empty"),
        ([], "row 2: option is empty"),
        ([[1.0, 2.0]], "row 2: option: an option is a list, but not of finite numbers"),
        ([1.0, [2.0]], "row 2: option: an option is a list, but not of finite numbers"),
        ([1.0, None], "row 2: option: an option is a list, but not of finite numbers"),
        ([1.0, float("inf")], "row 2: option: an option is a list, but not of finite"),
        ([1.0], "row 2: option: has shape (1,)"),
        ({"text": "water"}, "row 2: option: is not a text"),
        (True, "row 2: option: is not a text"),
        (7, "row 2: option: '7' is not in the dataset"),
        (2.0**60, "row 2: option: is a number that was rounded"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--random"]])
def test_options_that_cannot_be_asked_about(ask, tmp_path, option, named, more):
    path = tmp_path / "options.jsonl"
    path.write_text(
        "\n".join(json.dumps({"option": text}) for text in ("water", option))
    )
    finished, table = ask(["1"], f"--options={path}", *more, out="me.jsonl")
    assert finished.code == 2 and named in finished.err and table == []
    assert len(finished.err.splitlines()[-1]) < 300 and "Traceback" not in finished.err


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"chosen": "\ud83d", "rejected": "water"}, "chosen: is not valid Unicode"),
        ({"chosen": "water", "rejected": float("nan")}, "rejected is empty"),
        ({"chosen": [[1]], "rejected": "water"}, "chosen: an option is a list, but"),
        ({"chosen": "beer", "rejected": "water"}, "chosen: 'beer' is not in"),
        ({"chosen": "water", "rejected": "beer", "tie": 1}, "rejected: 'beer' is not"),
        ({"chosen": "water", "rejected": "latte", "tie": "so"}, "tie: is neither true"),
        ({"liked": "water"}, "liked: the model was not trained for likes"),
        ({"item": "water", "value": 3}, "value: the model was not trained for ratings"),
        ({"chosen": "water", "rejected": "latte", "why": "\udc00"}, "why: half of a"),
        ({"chosen": "water", "rejected": "latte", "tags": ["a"]}, "tags: holds a list"),
        ({"chosen": "water", "rejected": "latte", "\udc00": 1}, "the name of a column"),
        ({"chosen": "water", "rejected": "latte", "prompt": 5}, "prompt is not a text"),
    ],
)
def test_earlier_answers_that_cannot_be_used(ask, tmp_path, row, named):
    path = tmp_path / "before.jsonl"
    rows = [{"chosen": "espresso", "rejected": "water"}, row]
    path.write_text("\n".join(map(json.dumps, rows)))
    finished, table = ask(["1"], f"--choices={path}")
    assert finished.code == 2 and table == []
    assert f"{path}, row 2: {named}" in finished.err
    assert len(finished.err.splitlines()[-1]) < 300 and "Traceback" not in finished.err


@pytest.mark.parametrize("out", ["me.csv", "me.jsonl"])
def test_earlier_answers_keep_dates_and_lose_gaps(ask, tmp_path, out):
    path = tmp_path / "before.parquet"
    when = datetime.datetime(2026, 11, 29, 20, 41)
    columns = {
        "chosen": ["espresso", "latte"],
        "rejected": ["water", "water"],
        "at": [when, None],
        "price": [decimal.Decimal("2.50"), decimal.Decimal("3.00")],
    }
    pa.parquet.write_table(pa.table(columns), path)
    finished, table = ask(["1"], f"--choices={path}", "--num_questions=1", out=out)
    assert finished.code == 0 and len(table) == 3
    assert table[0]["at"] == "2026-11-29T20:41:00" and not table[1].get("at")
    assert [row["price"] for row in table[:2]] == ["2.50", "3.00"]


def test_a_random_order_asks_no_answered_pair_again(ask, tmp_path):
    """However its options are named: by text, or by text and prompt."""
    path = tmp_path / "before.jsonl"
    names = sorted(DRINKS)
    pairs = list(itertools.combinations(names, 2))
    rows = [{"chosen": a, "rejected": b} for a, b in pairs[:-1]]
    files.write_jsonl(path, rows)
    finished, table = ask(["1"] * 3, f"--choices={path}", "--random", out="a.jsonl")
    assert finished.code == 0 and len(table) == len(pairs)
    assert {table[-1]["chosen"], table[-1]["rejected"]} == set(pairs[-1])


@pytest.mark.slow
def test_a_run_of_simulated_people(ask, tmp_path, launch):
    """Its options are drawn, and are numbers."""
    folder = tmp_path / "run"
    fields = {
        f"{section}.{name}": value
        for section, values in TINY.items()
        for name, value in values.items()
    }
    fields |= {"eval.users": 4, "eval.valid_users": 4, "task.num_targets": 8}
    trained = launch(
        "train",
        "--config=experiments/synthetic/two_types.py:bayes",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={folder}",
    )
    assert trained.code == 0, trained.err
    finished, table = ask(["1", "2"], workdir=folder, out="me.jsonl")
    assert finished.code == 0 and len(table) == 2
    assert all(0 <= row["chosen"][0] <= 1 for row in table)


def test_a_tie_counts_where_the_model_takes_it(ranker):
    options = [(PROMPT, text) for text in DRINKS]
    talk = Interview(ranker, options)
    first = talk.question()
    before = talk.ranking().probability
    talk.answer(first, TIE)
    assert len(talk.told["tied"]) == 1 and "chosen" not in talk.told
    after = talk.ranking().probability
    assert abs(after - before).max() > 1e-4
    assert talk.question() != first
    talk.undo()
    np.testing.assert_array_equal(talk.ranking().probability, before)
    assert talk.question() == first


def test_a_model_that_takes_z_for_certain_asks_in_a_random_order(ranker):
    certain = dataclasses.replace(ranker, deterministic=True)
    options = [(PROMPT, text) for text in DRINKS]
    with pytest.raises(InputError, match="deterministic"):
        Interview(certain, options).question()
    talk = Interview(certain, options, random=True)
    pairs = set()
    while pair := talk.question():
        assert talk.certainty() is None
        pairs.add(frozenset(pair))
        talk.answer(pair, FIRST)
    assert len(pairs) == 21


def test_options_of_different_prompts_are_not_compared(ranker):
    options = [("", "water"), ("", "latte"), (PROMPT, "water"), (PROMPT, "latte")]
    for random in (False, True):
        vectors = [[0.0, 0.0], [1.0, 1.0]]
        talk = Interview(ranker, [*options[2:], *vectors], random=random)
        pairs = set()
        while pair := talk.question():
            pairs.add(tuple(sorted(pair)))
            talk.answer(pair, SKIP)
        # A list of numbers answers no prompt.
        assert pairs == {(0, 1), (2, 3)}


def test_certainty_and_ranking_are_about_pairs_of_one_prompt(ranker):
    """An option that is alone with its prompt is neither asked about nor ranked."""
    water, latte = options = [(PROMPT, "water"), (PROMPT, "latte")]
    vectors = [[3.0, 3.0], [-2.0, 0.0]]
    alone = Interview(ranker, options)
    mixed = Interview(ranker, [water, vectors[0], latte])
    assert mixed.certainty() == pytest.approx(alone.certainty(), abs=1e-6)
    assert mixed.ranking().options == options
    both = Interview(ranker, [water, vectors[0], latte, vectors[1]])
    second = Interview(ranker, vectors)
    mean = (alone.certainty() + second.certainty()) / 2
    assert both.certainty() == pytest.approx(mean, abs=1e-6)
    found = dict(zip(range(4), both.ranking().probability, strict=True))
    wanted = np.concatenate([alone.ranking().probability, second.ranking().probability])
    np.testing.assert_allclose([found[i] for i in (0, 2, 1, 3)], wanted, atol=1e-6)


@pytest.mark.parametrize("text", ["a b " * 500, "x" * 3000, "紅" * 900, "", "word"])
@pytest.mark.parametrize("width", [20, 80, 100])
def test_questions_fit_the_terminal(text, width):
    lines = interview.shown_question("Question 1: " + text, text, "b", width)
    for line in lines.splitlines():
        wide = sum(unicodedata.east_asian_width(c) in "WF" for c in line)
        assert len(line) + wide <= width
    assert len(lines.splitlines()) < 30
    if len(text) < 10:
        assert text in lines


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal as the standard input; gives its other end."""
    other, own = pty.openpty()
    with open(own) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield other
    os.close(other)


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        (b"1", "1"),
        (b"T", "t"),
        (b"\x7f", key_presses.BACKSPACE),
        (b"\x08", key_presses.BACKSPACE),
        (b"\x04", key_presses.END),
        (b"\x1b[A", "another key"),
        ("é".encode(), "another key"),
        (b"\t", "another key"),
    ],
)
def test_key_presses(terminal, sent, key):
    """Single ones, without Enter; the terminal is as before afterwards."""
    before = termios.tcgetattr(sys.stdin)
    pressed = press_later(terminal, sent)
    assert key_presses.read() == key
    pressed()
    assert termios.tcgetattr(sys.stdin) == before


def press_later(terminal, sent):
    """Presses keys once a program waits for them; returns how to wait for that."""

    def press():
        # Keys wait in vain for a program that has not asked for them.
        while termios.tcgetattr(terminal)[3] & termios.ICANON:
            time.sleep(0.005)
        os.write(terminal, sent)

    thread = threading.Thread(target=press)
    thread.start()
    return thread.join


def test_keys_that_were_pressed_before_do_not_count(terminal):
    os.write(terminal, b"11\n")
    # What is written reaches the other end a little later.
    assert select.select([sys.stdin], [], [], 60)[0]
    pressed = press_later(terminal, b"2")
    assert key_presses.read() == "2"
    pressed()


# Makes a pseudo-terminal that of the process, as of a shell, then begins the program.
BEGIN = """
import os, sys
os.login_tty(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Session:
    """`fsa ask` in a pseudo-terminal of its own."""

    def __init__(self, *arguments):
        self.screen, self.place = "", 0
        self.terminal, own = pty.openpty()
        line = [sys.executable, "-c", BEGIN, str(own), "-m", "fsa", "ask", *arguments]
        self.process = subprocess.Popen(line, pass_fds=[own])
        os.close(own)

    def read(self):
        """Reads what came; returns whether the program goes on."""
        if select.select([self.terminal], [], [], 1)[0]:
            try:
                sent = os.read(self.terminal, 4096)
            except OSError:  # What Linux says at the end.
                return False
            self.screen += sent.decode(errors="replace")
        return True

    def wait_for(self, text, seconds=300):
        """Reads the screen up to a text; returns what is new."""
        end = time.monotonic() + seconds
        while text not in self.screen[self.place :]:
            assert self.read() and time.monotonic() < end, self.screen
        begin = self.place
        self.place = self.screen.index(text, begin) + len(text)
        return self.screen[begin : self.place]

    def press(self, keys):
        """Presses keys once the program waits for them."""
        while termios.tcgetattr(self.terminal)[3] & termios.ICANON:
            time.sleep(0.01)
        os.write(self.terminal, keys)

    def resize(self, rows, columns):
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, size)

    def end(self):
        """Returns the exit code."""
        while self.read():
            pass
        return self.process.wait(timeout=60)


@pytest.mark.slow
def test_in_a_terminal(run, tmp_path):
    """Keys without Enter, undo, another size, and Ctrl-C, which loses nothing."""
    path = tmp_path / "me.csv"
    session = Session(f"--workdir={run}", f"--out={path}", "--num_questions=9")
    try:
        first = session.wait_for("Your answer: ")
        assert "Question 1 of 9" in first
        session.press(b"1")
        session.wait_for("Your answer: ")
        session.press(b"2")
        session.wait_for("Your answer: ")
        assert len(list(files.read_rows(path))) == 2
        session.press(b"\x7f")
        session.wait_for("Question 2 of 9")
        session.wait_for("Your answer: ")
        assert len(list(files.read_rows(path))) == 1
        session.resize(20, 40)
        session.press(b"\x1b[A")
        session.wait_for("Your answer: ")
        session.press(b"s")
        narrow = session.wait_for("Your answer: ")
        question = narrow[narrow.index("Question 2") :]
        assert max(map(len, question.splitlines())) <= 40
        session.press(b"\x03")
        assert session.end() == 130
    finally:
        session.process.kill()
        os.close(session.terminal)
    assert "1 answer" in session.screen.splitlines()[-1]
    assert len(list(files.read_rows(path))) == 1
    # Nothing that the texts hold reached the terminal.
    assert "\x1b[2J" not in session.screen and "\x07" not in session.screen
