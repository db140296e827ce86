"""`Service`: people and a trained run, as the routes of the server use them.

All methods may be called in any thread; they wait for each other where they compute.

Shapes: O options.
"""

import dataclasses
import io
import pathlib
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

from fsa.errors import InputError
from fsa.inference.adapter_folders import NOBODY
from fsa.inference.questions import Question
from fsa.inference.ranking import Ranking
from fsa.serving.people import KeptAnswer, PeopleStore, Unknown, digest_of
from fsa.serving.person_model import Answer, Latent, PersonModel


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server accepts at most.

    Attributes:
      body: bytes of a request.
      answers: answers of a person.
      options: options of a ranking or question.
      new_tokens: tokens of a text.
      requests: requests at once.
      waiting: texts that wait to be begun.
    """

    body: int = 2**20
    answers: int = 1000
    options: int = 200
    new_tokens: int = 512
    requests: int = 64
    waiting: int = 32


class Service:
    """People with their answers, and what a run makes of them.

    Attributes:
      model: of the run.
      store: the people.
      limits: see `Limits`.
      computing: held by whoever computes with the model.
    """

    def __init__(self, model: PersonModel, store: PeopleStore, limits: Limits):
        """Joins the two."""
        self.model, self.store, self.limits = model, store, limits
        self.computing = threading.Lock()

    def exists(self, name: str) -> bool:
        """Whether there is a person of that name; there always is `nobody`."""
        return name == NOBODY or name in self.store

    def answers(self, name: str) -> list[KeptAnswer]:
        """Returns a person's answers; `nobody` has none.

        Raises:
          Unknown: if the person is not there.
        """
        return [] if name == NOBODY else self.store.answers(name)

    def add_answer(self, name: str, answer: Answer, id: str | None = None) -> str:
        """Keeps an answer that the model can use; returns its id.

        Raises:
          InputError: for an answer that it cannot use.
          Unknown, Refused: see `PeopleStore.add_answer`.
        """
        self._refuse_nobody(name)
        if not self.exists(name):
            raise Unknown(name)
        self.check(answer)
        return self.store.add_answer(name, answer, id, most=self.limits.answers)

    def check(self, answer: Answer) -> None:
        """Raises InputError for an answer that the model cannot use."""
        with self.computing:
            self.model.check(answer)

    def remove_answer(self, name: str, id: str) -> bool:
        """Removes an answer; see `PeopleStore.remove_answer`."""
        self._refuse_nobody(name)
        return self.store.remove_answer(name, id)

    def latent(self, name: str) -> Latent:
        """Returns z of a person, inferred if it is not kept already.

        Raises:
          Unknown: if the person is not there.
          InputError: for a model without z, or answers that it cannot use.
        """
        answers = self._told(name)
        of = digest_of(self.model.checkpoint, answers)
        kept = None if name == NOBODY else self.store.kept_latent(name, of)
        if kept is None:
            with self.computing:
                kept = self.model.latent(answers)
            if name != NOBODY:
                self.store.keep_latent(name, of, kept)
        return kept

    def rank(self, name: str, options: Sequence[Any], *, seed: int = 0) -> Ranking:
        """Ranks O options for a person, see `PersonModel.rank`."""
        answers = self._told(name)
        with self.computing:
            return self.model.rank(answers, options, seed=seed)

    def rank_at_once(
        self, name: str, options: Sequence[Any], *, seed: int = 0
    ) -> Ranking | None:
        """Returns `rank` without waiting for anybody; None if it may take long."""
        answers = self._told(name)
        if not self.model.ranks_at_once(answers, options):
            return None
        return self.model.rank(answers, options, seed=seed)

    def question(
        self,
        name: str,
        options: Sequence[Any],
        leave_out: Iterable[tuple[int, int]] = (),
        random: bool = False,
        *,
        seed: int = 0,
    ) -> Question | None:
        """Finds what to ask a person, see `PersonModel.question`."""
        answers = self._told(name)
        with self.computing:
            return self.model.question(answers, options, leave_out, random, seed=seed)

    def save_adapter(self, name: str, folder: pathlib.Path) -> None:
        """Writes the LoRA adapter of a person into a new folder, as PEFT reads it.

        Raises:
          Unknown: if the person is not there.
          InputError: for a reward model, and see `Steerer.save_adapter`.
        """
        if self.model.steerer is None:
            raise InputError("this run is of a reward model, which writes no texts")
        z = self.latent(name).mean
        with self.computing:
            self.model.steerer.save_adapter(z, folder)

    def zipped_adapter(self, name: str) -> bytes:
        """Returns the files of `save_adapter` as a zip archive."""
        packed = io.BytesIO()
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place, "adapter")
            self.save_adapter(name, folder)
            with zipfile.ZipFile(packed, "w") as archive:
                for path in sorted(folder.iterdir()):
                    archive.write(path, path.name)
        return packed.getvalue()

    def warm_up(self) -> None:
        """Compiles what the first requests run, for few answers and options."""
        with self.computing:
            self.model.warm_up()

    def _told(self, name: str) -> list[Answer]:
        return [each.answer for each in self.answers(name)]

    def _refuse_nobody(self, name: str) -> None:
        if name == NOBODY:
            raise InputError(f"{NOBODY!r} stands for a person without answers")
