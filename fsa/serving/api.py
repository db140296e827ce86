"""The routes about people: their answers, z, rankings, questions and adapters.

Every error is one line, in the form of OpenAI's; `/openapi.json` describes all routes.
What is asked most is computed in the event loop, if it takes about a millisecond, and
returns a JSONResponse: FastAPI would check and write a dict, and call functions that
are not coroutines, in other threads, which takes longer than ranking does.
"""

import json
import secrets
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr
from starlette.concurrency import run_in_threadpool

from fsa.data import columns
from fsa.errors import InputError
from fsa.inference.adapter_folders import NOBODY, folder_name
from fsa.serving.errors import Failure
from fsa.serving.people import KeptAnswer
from fsa.serving.security import ADMIN, Access, described
from fsa.serving.service import Service

# A vector, the text or id of an item, or any other text, see `fsa.Ranker`.
Option = StrictStr | StrictInt | StrictFloat | list[StrictFloat | StrictInt]
Prompt = StrictStr | list[dict[str, Any]]
Name = Annotated[
    str,
    Path(min_length=1, max_length=100, description="Of a person; or nobody."),
]
Json = dict[str, Any]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewPerson(_Body):
    """Whom to add."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w@+][\w@+ .-]*$")


class NewAnswer(_Body):
    """What a person told: a choice, a tie, a like, a dislike or a rating.

    The fields are the columns of a table of `fsa predict --context`.
    """

    id: str | None = Field(None, min_length=1, max_length=100, pattern=r"^[\w.-]+$")
    prompt: Prompt | None = None
    chosen: Option | None = None
    rejected: Option | None = None
    tie: bool | None = None
    liked: Option | None = None
    disliked: Option | None = None
    item: Option | None = None
    value: float | None = None


class Ranked(_Body):
    """What to rank."""

    options: list[Option] = Field(min_length=2)
    prompt: Prompt | list[StrictStr] | None = Field(
        None, description="What the options answer: one for all, or one for each."
    )
    seed: int = Field(0, ge=0, lt=2**31)


class Asked(Ranked):
    """What to ask about."""

    leave_out: list[tuple[int, int]] = Field(
        [], max_length=100_000, description="Positions of pairs that are not asked."
    )
    random: bool = Field(False, description="Any pair, not that which tells most.")


def make_router(service: Service, access: Access) -> APIRouter:
    """Returns the routes.

    Args:
      service: people and run.
      access: who may ask what.
    """
    router = APIRouter(prefix="/v1/people", tags=["people"])
    admin = [Depends(described(access.require_admin))]
    person = [Depends(described(access.require_person))]
    _add_people(router, service, access, admin, person)
    _add_answers(router, service, person)
    _add_results(router, service, person)
    return router


def _add_people(router, service, access, admin, person) -> None:
    store = service.store

    @router.get("", dependencies=[Depends(described(access.caller))])
    def people(request: Request) -> Json:
        """All people; to a person only that person."""
        caller = access.caller(request)
        return {"people": store.names() if caller == ADMIN else [caller]}

    @router.post("", status_code=201, dependencies=admin)
    def add(new: NewPerson) -> Json:
        """Adds a person; the token is shown once."""
        if new.name == NOBODY:
            raise InputError(f"{NOBODY!r} stands for a person without answers")
        token = secrets.token_urlsafe(32)
        store.add(new.name, token)
        return {"name": new.name, "token": token}

    @router.post("/{name}/token", dependencies=admin)
    def renew(name: Name) -> Json:
        """Makes a new token; the old one is refused from then on."""
        token = secrets.token_urlsafe(32)
        store.set_token(name, token)
        return {"name": name, "token": token}

    @router.get("/{name}", dependencies=person)
    def show(name: Name) -> Json:
        """Answers and z of a person, with its standard deviation and checkpoint."""
        found = {"name": name, "answers": list(map(_shown, service.answers(name)))}
        if not service.model.ranker.model.latent_dim:
            return found
        z = service.latent(name)
        checkpoint = service.model.checkpoint
        return (
            found
            | {"z": _numbers(z.mean), "std": _numbers(z.std)}
            | {"checkpoint": checkpoint}
        )

    @router.delete("/{name}", status_code=204, dependencies=admin)
    def remove(name: Name) -> None:
        """Removes a person with all answers."""
        store.remove(name)


def _add_answers(router, service, person) -> None:
    @router.get("/{name}/answers", dependencies=person)
    async def answers(name: Name) -> JSONResponse:
        """The answers of a person, in the order in which they came."""
        return JSONResponse({"answers": list(map(_shown, service.answers(name)))})

    @router.post("/{name}/answers", status_code=201, dependencies=person)
    def add(name: Name, new: NewAnswer) -> JSONResponse:
        """Keeps an answer; it is on the disk when this returns.

        The same answer with the same id counts once, so it can be sent again.
        """
        answer = new.model_dump(exclude_none=True, exclude={"id"})
        _check_text(answer)
        return JSONResponse({"id": service.add_answer(name, answer, new.id)}, 201)

    @router.delete("/{name}/answers/{id}", status_code=204, dependencies=person)
    def remove(name: Name, id: str) -> None:
        """Removes an answer."""
        if not service.remove_answer(name, id):
            raise Failure(404, f"no answer {id[:100]!r}")


def _add_results(router, service, person) -> None:
    @router.post("/{name}/rank", dependencies=person)
    async def rank(name: Name, wanted: Ranked) -> JSONResponse:
        """Ranks options: how likely each is chosen over another one."""
        options = _options(service, wanted)
        given = name, options
        ranking = service.rank_at_once(*given, seed=wanted.seed)
        if ranking is None:
            ranking = await run_in_threadpool(service.rank, *given, seed=wanted.seed)
        rows = zip(ranking.order.tolist(), ranking.rows(), strict=True)
        ranked = [{"position": i, **row} for i, row in rows]
        return JSONResponse({"ranking": ranked})

    @router.post("/{name}/question", dependencies=person)
    def question(name: Name, asked: Asked) -> JSONResponse:
        """The two options whose comparison tells most; null if none is left."""
        found = service.question(
            name,
            _options(service, asked),
            asked.leave_out,
            asked.random,
            seed=asked.seed,
        )
        if found is None:
            return JSONResponse({"question": None})
        gain = found.gain if np.isfinite(found.gain) else None
        asked_next = {"first": found.first, "second": found.second, "gain": gain}
        return JSONResponse({"question": asked_next})

    @router.get(
        "/{name}/adapter",
        dependencies=person,
        response_class=Response,
        responses={200: {"content": {"application/zip": {}}}},
    )
    def adapter(name: Name) -> Response:
        """A zip archive of the person's LoRA adapter, as PEFT reads it."""
        packed = service.zipped_adapter(name)
        told = f'attachment; filename="{folder_name(name)}.zip"'
        headers = {"Content-Disposition": told.encode("ascii", "ignore").decode()}
        return Response(packed, media_type="application/zip", headers=headers)


def _options(service: Service, wanted: Ranked) -> list[Any]:
    """Returns options as `fsa.Ranker` takes them, texts with their prompts.

    Raises:
      InputError: for too many options, or prompts that do not fit.
    """
    most, count = service.limits.options, len(wanted.options)
    if count > most:
        raise InputError(f"options: {count} are given; give {most} at most")
    _check_text(wanted.model_dump())
    prompts = wanted.prompt
    if prompts is None:
        return wanted.options
    if not isinstance(prompts, list) or isinstance(next(iter(prompts), None), dict):
        prompts = [prompts] * count
    if len(prompts) != count:
        raise InputError(f"prompt: {len(prompts)} are given for {count} options")
    # Messages as JSON, as datasets have them.
    texts = [columns.prompt_of({"prompt": prompt}, "options") for prompt in prompts]
    return [
        (prompt, option) if isinstance(option, str) else option
        for prompt, option in zip(texts, wanted.options, strict=True)
    ]


def _check_text(value: Any) -> None:
    """Raises InputError for half a character, which cannot be kept or shown."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError("a text has half of a character; correct it") from None


def _shown(kept: KeptAnswer) -> Json:
    return {"id": kept.id, **kept.answer}


def _numbers(x: np.ndarray) -> list[float]:
    return [float(value) for value in x]
