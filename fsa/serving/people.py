"""`PeopleStore`: what people told, in a file that survives a crash.

The file is an SQLite database with a write-ahead log that is synchronised with the disk
at every change: once a method that changes something has returned, the change is kept,
whatever happens to the process. Only answers are the truth; z is kept beside them with
a digest of what it was inferred from, and inferred again where that has changed, as
when another run is served.

Shapes: D latent dimensions.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from fsa.errors import InputError
from fsa.serving.person_model import Answer, Latent, canonical

# The number of the tables below, in the header of the file.
_VERSION = 1
_TABLES = """
CREATE TABLE people (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  token TEXT UNIQUE,
  latent BLOB,
  latent_of TEXT
);
CREATE TABLE answers (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  person INTEGER NOT NULL REFERENCES people(id) ON DELETE CASCADE,
  id TEXT NOT NULL,
  answer TEXT NOT NULL,
  UNIQUE (person, id)
);
"""
_SETTINGS = """
PRAGMA journal_mode = WAL;
PRAGMA foreign_keys = ON;
PRAGMA secure_delete = ON;
PRAGMA busy_timeout = 10000;
"""


class Unknown(LookupError):
    """A person who is not there."""


class Refused(ValueError):
    """A change that contradicts what is kept; the message is one line."""


class KeptAnswer(NamedTuple):
    """An answer of a person.

    Attributes:
      id: by which it can be removed; unique among the person's answers.
      answer: a row, see `fsa.serving.person_model`.
    """

    id: str
    answer: Answer


class PeopleStore:
    """People by their names, with their answers. All methods may run in any thread."""

    def __init__(self, path: str | os.PathLike):
        """Opens a file, or makes it; only its owner may read it.

        Raises:
          InputError: if it cannot be opened, or is of another kind or version.
        """
        self.path = os.fspath(path)
        # Connections that no thread uses at the moment.
        self._free: list[sqlite3.Connection] = []
        self._writing = threading.Lock()
        try:
            pathlib.Path(path).touch(mode=0o600)
            with self._change() as database:
                (version,) = database.execute("PRAGMA user_version").fetchone()
                (tables,) = database.execute(
                    "SELECT count(*) FROM sqlite_master"
                ).fetchone()
                if not version and not tables:
                    for statement in _TABLES.split(";"):
                        database.execute(statement)
                    database.execute(f"PRAGMA user_version = {_VERSION}")
                elif version != _VERSION:
                    raise InputError(
                        f"{path}: not a file of people of this version of fsa; name "
                        "another one by `people`"
                    )
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"{path}: {error}; name another file by `people`"
            ) from error

    def close(self) -> None:
        """Closes the file; nothing may run any more."""
        while self._free:
            self._free.pop().close()

    def add(self, name: str, token: str | None = None) -> None:
        """Adds a person without answers.

        Args:
          name: of the person.
          token: what the person shows, of which only a digest is kept.

        Raises:
          Refused: if there is a person of that name.
        """
        with self._change() as database:
            try:
                database.execute(
                    "INSERT INTO people (name, token) VALUES (?, ?)",
                    (name, token and _digest(token)),
                )
            except sqlite3.IntegrityError:
                raise Refused(
                    f"{name!r} is there already; choose another name"
                ) from None

    def remove(self, name: str) -> None:
        """Removes a person and all answers; raises Unknown if there is none."""
        with self._change() as database:
            found = database.execute("DELETE FROM people WHERE name = ?", (name,))
            if not found.rowcount:
                raise Unknown(name)

    def set_token(self, name: str, token: str) -> None:
        """Replaces a person's token; raises Unknown if there is no such person."""
        with self._change() as database:
            person = _id_of(database, name)
            database.execute(
                "UPDATE people SET token = ? WHERE id = ?", (_digest(token), person)
            )

    def owner_of(self, token: str) -> str | None:
        """Returns the name of the person whose token this is; None if nobody's."""
        query = "SELECT name FROM people WHERE token = ?"
        found = self._read(query, _digest(token))
        return found[0][0] if found else None

    def names(self) -> list[str]:
        """Returns the names of all people, in the order in which they came."""
        return [name for (name,) in self._read("SELECT name FROM people ORDER BY id")]

    def __contains__(self, name: str) -> bool:
        """Whether there is a person of that name."""
        return bool(self._read("SELECT 1 FROM people WHERE name = ?", name))

    def answers(self, name: str) -> list[KeptAnswer]:
        """Returns a person's answers, in the order in which they came.

        Raises:
          Unknown: if the person is not there.
        """
        query = (
            "SELECT answers.id, answer FROM people LEFT JOIN answers ON "
            "person = people.id WHERE name = ? ORDER BY number"
        )
        rows = self._read(query, name)
        if not rows:
            raise Unknown(name)
        return [
            KeptAnswer(own, json.loads(answer))
            for own, answer in rows
            if own is not None
        ]

    def add_answer(
        self, name: str, answer: Answer, id: str | None = None, *, most: int
    ) -> str:
        """Adds an answer.

        Args:
          name: of the person.
          answer: a row, see `fsa.serving.person_model`.
          id: of the answer; a new one by default. The same answer with the same id
            counts once, so that a client may repeat what was not acknowledged.
          most: how many answers a person may have.

        Returns:
          The id.

        Raises:
          Unknown: if the person is not there.
          Refused: if the id is that of another answer, or there are too many answers.
        """
        own, text = id or uuid.uuid4().hex, canonical(answer)
        with self._change() as database:
            person = _id_of(database, name)
            query = "SELECT answer FROM answers WHERE person = ? AND id = ?"
            if known := database.execute(query, (person, own)).fetchone():
                if known[0] != text:
                    raise Refused(f"id {own!r} is another answer's; choose another one")
                return own
            query = "SELECT count(*) FROM answers WHERE person = ?"
            (count,) = database.execute(query, (person,)).fetchone()
            if count >= most:
                raise Refused(f"{name!r} has {count} answers, the most; remove some")
            database.execute(
                "INSERT INTO answers (person, id, answer) VALUES (?, ?, ?)",
                (person, own, text),
            )
        return own

    def remove_answer(self, name: str, id: str) -> bool:
        """Removes an answer; returns whether it was there.

        Raises:
          Unknown: if the person is not there.
        """
        with self._change() as database:
            person = _id_of(database, name)
            query = "DELETE FROM answers WHERE person = ? AND id = ?"
            return database.execute(query, (person, id)).rowcount > 0

    def kept_latent(self, name: str, of: str) -> Latent | None:
        """Returns a person's z, if it was inferred from what has the digest `of`."""
        query = "SELECT latent FROM people WHERE name = ? AND latent_of = ?"
        found = self._read(query, name, of)
        if not found:
            return None
        return Latent(*np.frombuffer(found[0][0], np.float32).reshape(2, -1))

    def keep_latent(self, name: str, of: str, latent: Latent) -> None:
        """Keeps a person's z, inferred from what has the digest `of`.

        It need not be on the disk at once: what is lost is inferred again, the same.
        """
        with self._change(durable=False) as database:
            database.execute(
                "UPDATE people SET latent = ?, latent_of = ? WHERE name = ?",
                (np.stack(latent).astype(np.float32).tobytes(), of, name),
            )

    def _read(self, query: str, *values: str) -> list[tuple]:
        """Returns the rows of a query; readers do not wait for a writer."""
        with self._connection() as database:
            return database.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _change(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Yields a connection in a transaction, which is on the disk at the end."""
        with self._connection() as database, self._writing:
            level = "FULL" if durable else "NORMAL"
            database.execute(f"PRAGMA synchronous = {level}")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yields a connection that no other thread uses meanwhile."""
        try:
            database = self._free.pop()
        except IndexError:
            database = self._connect()
        try:
            yield database
        finally:
            self._free.append(database)

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False
        )
        database.executescript(_SETTINGS)
        return database


def digest_of(checkpoint: str, answers: Iterable[Answer]) -> str:
    """Returns the digest of what a z is inferred from, whatever the answers' order."""
    told = "\n".join(sorted(map(canonical, answers)))
    return hashlib.sha256(f"{checkpoint}\n{told}".encode()).hexdigest()


def _digest(token: str) -> str:
    # Tokens are random and long, so that a digest without salt cannot be guessed.
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def _id_of(database: sqlite3.Connection, name: str) -> int:
    found = database.execute("SELECT id FROM people WHERE name = ?", (name,)).fetchone()
    if not found:
        raise Unknown(name)
    return found[0]
