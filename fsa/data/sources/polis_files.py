"""Reads the votes of a Polis consultation.

There are two forms: an export as published (a folder with `comments.csv` and
`participants-votes.csv`; github.com/compdemocracy/openData has many), and the compact
form (`votes/NAME.npz` beside `../statements.jsonl.gz` and `../conversations.json`).
"""

import csv
import dataclasses
import json
import pathlib
import zipfile

import numpy as np

from fsa.data import files, splits
from fsa.data.sources.polis import AGREE, DISAGREE, PASS, UNSEEN, Conversation
from fsa.data.tables import Report
from fsa.errors import InputError

MIN_CHARACTERS = 8

_REMOVED = -1  # Other states of moderation: 1, accepted, and 0, not moderated.
_VOTES = {"1": AGREE, "0": PASS, "-1": DISAGREE, "": UNSEEN}


def read(
    path: str | pathlib.Path, *, seed: int, name: str = "", prompt: str = ""
) -> tuple[Conversation, Report]:
    """Reads a consultation in either form; its report counts participants in `rows`.

    Args:
      path: the folder of an export, or an .npz file.
      seed: seed of the splits of an export's participants; the compact form has splits.
      name: name of the conversation; by default that of the folder or file.
      prompt: the question that the statements answer; by default the topic in an
        export's `summary.csv`, or the prompt in `conversations.json` beside the
        statements.

    Raises:
      InputError: if a file is missing, damaged, or of another form.
    """
    path = pathlib.Path(path)
    name = name or path.resolve().name.removesuffix(".npz")
    report = Report(str(path))
    if path.suffix == ".npz":
        conversation = _read_compact(path, name, prompt)
        report.rows = len(conversation.participants)
    elif path.is_dir():
        conversation = _read_export(path, name, prompt, seed, report)
    else:
        raise InputError(
            f"{path}: neither an .npz file nor the folder of a Polis export"
        )
    report.notes["statements"] = len(conversation.statements)
    report.notes["votes"] = int((conversation.votes != UNSEEN).sum())
    return conversation, report


def _read_export(
    folder: pathlib.Path, name: str, prompt: str, seed: int, report: Report
) -> Conversation:
    texts = _export_texts(folder / "comments.csv", report)
    participants, votes = _export_votes(folder / "participants-votes.csv", list(texts))
    voted = (votes != UNSEEN).any(axis=1)
    report.rows = len(voted)
    silent = int((~voted).sum())
    report.notes["participants left out: no vote on a statement that is kept"] = silent
    if not voted.any():
        raise InputError(
            f"{folder}: no votes on statements that moderators did not remove"
        )
    conversation = Conversation(
        name=name,
        prompt=prompt or _topic(folder / "summary.csv"),
        statements=np.array(list(texts), np.int32),
        texts=tuple(texts.values()),
        participants=participants[voted],
        votes=votes[voted],
        split=np.zeros(voted.sum(), np.int8),
    )
    names = map(conversation.user, range(len(conversation.participants)))
    split = [splits.SPLITS.index(splits.of(user, seed)) for user in names]
    return dataclasses.replace(conversation, split=np.array(split, np.int8))


def _export_votes(
    path: pathlib.Path, statements: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads participants `[P]` int32 and their votes `[P, S]` int8."""
    rows = list(files.read_rows(path))
    columns = [str(statement) for statement in statements]
    for column in ("participant", *columns):
        if not rows or column not in rows[0][1]:
            raise InputError(f"{path}: no column {column!r}; is it a Polis export?")
    participants, votes = [], []
    for line, row in rows:
        try:
            participants.append(int(row["participant"]))
            votes.append([_VOTES[row[column].strip()] for column in columns])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}, row {line}: {error} is not a participant or vote (1, 0, -1 "
                "or empty); correct it"
            ) from error
    return np.array(participants, np.int32), np.array(votes, np.int8)


def _export_texts(path: pathlib.Path, report: Report) -> dict[int, str]:
    """Reads the statements: number -> text, by number.

    Statements that moderators removed, those shorter than `MIN_CHARACTERS` and later
    copies of a text are left out; white space is normalised.
    """
    texts, first = {}, {}
    for number, (text, moderated) in sorted(_comments(path).items()):
        if moderated == _REMOVED:
            report.note("statements left out: removed by the moderators")
        elif len(text) < MIN_CHARACTERS:
            report.note(f"statements left out: under {MIN_CHARACTERS} characters")
        elif first.setdefault(text, number) != number:
            report.note("statements left out: copy of an earlier one")
        else:
            texts[number] = text
    return texts


def _comments(path: pathlib.Path) -> dict[int, tuple[str, int]]:
    """Reads all statements: number -> (text, moderation)."""
    comments = {}
    for line, row in files.read_rows(path):
        try:
            text = " ".join(row["comment-body"].split())
            comments[int(row["comment-id"])] = text, int(row["moderated"])
        except KeyError as error:
            raise InputError(
                f"{path}: no column {error}; is it a Polis export?"
            ) from error
        except ValueError as error:
            raise InputError(
                f"{path}, row {line}: comment-id or moderated is not a whole number; "
                "correct it"
            ) from error
    return comments


def _topic(path: pathlib.Path) -> str:
    """Reads the topic of an export from the lines "key,value" of `summary.csv`."""
    if not path.is_file():
        return ""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            entries = dict(row[:2] for row in csv.reader(file) if len(row) > 1)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); correct it") from error
    return entries.get("topic", "")


def _read_compact(path: pathlib.Path, name: str, prompt: str) -> Conversation:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            votes, split = arrays["votes"], arrays["split"]
            participants, statements = arrays["participant"], arrays["statement"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a compact Polis file, or damaged") from error
    if not (
        votes.shape == (len(participants), len(statements))
        and split.shape == participants.shape
        and np.isin(votes, list(_VOTES.values())).all()
        and np.isin(split, range(len(splits.SPLITS))).all()
    ):
        raise InputError(f"{path}: not the votes and splits of people; make it again")
    beside = path.parent.parent
    texts = {
        row.get("id"): row.get("text")
        for _, row in files.read_rows(beside / "statements.jsonl.gz")
    }
    found = [texts.get(f"{name}/{statement}") for statement in statements]
    if None in found:
        statement = f"{name}/{statements[found.index(None)]}"
        raise InputError(
            f"{beside / 'statements.jsonl.gz'}: no statement {statement!r}; the name "
            "of the .npz file is part of the ids"
        )
    return Conversation(
        name=name,
        prompt=prompt or _known_prompt(beside / "conversations.json", name),
        statements=statements,
        texts=tuple(found),
        participants=participants,
        votes=votes,
        split=split,
    )


def _known_prompt(path: pathlib.Path, name: str) -> str:
    """Reads the prompt of a conversation from the list of conversations, if any."""
    if not path.is_file():
        return ""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        prompts = {entry["conversation"]: entry["prompt"] for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error!r}); correct it") from error
    return prompts.get(name, "")
