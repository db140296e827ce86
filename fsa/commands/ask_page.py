"""The page of `fsa ask --page`, served to this machine alone until Ctrl-C."""

import contextlib
import dataclasses
import errno
import pathlib
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from fsa import bars, examples, folders
from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.inference.ranker import Ranker
from fsa.serving.page import crowd, tables
from fsa.serving.page.app import make_page_app
from fsa.serving.page.page_model import PageModel
from fsa.serving.people import PeopleStore
from fsa.serving.person_model import PersonModel
from fsa.serving.service import Limits, Service
from fsa.training.compile_cache import keep_compiled

_HOST = "127.0.0.1"
# The first port that is tried, and how many follow.
_FIRST_PORT, _NUM_PORTS = 8000, 100
# A person who tells on the page is kept in this file of the run directory.
_PEOPLE = "people.sqlite"


def show(
    workdir: str | None,
    *,
    options_of: Callable[[Ranker], tuple[list[Any], Any]],
    earlier: Sequence[dict[str, Any]],
    embedder: str | None,
    data: str | None,
    name: str,
    port: int | None,
    open_browser: bool,
) -> None:
    """Loads a run and serves its page until Ctrl-C.

    Args:
      workdir: the run directory; None for the example that is installed.
      options_of: returns what is asked about, and ids.
      earlier: answers from before.
      embedder: see `Ranker.load`.
      data: see `Ranker.load`.
      name: of the person.
      port: see `find_port`.
      open_browser: whether to open the page.

    Raises:
      InputError: if the run, the port or the options cannot be used.
    """
    attribution = ""
    if workdir is None:
        workdir, attribution = examples.unpack(examples.CUISINES)
    people, place = people_of(workdir), find_port(port)
    with keep_compiled(workdir), bars.Bar(2, "Preparing", "part") as bar:
        bar.say("loading the model")
        model = PersonModel.load(workdir, embedder=embedder, data=data)
        options, _ = options_of(with_data(model, workdir, data))
        bar.advance()
        bar.say("drawing people")
        title = pathlib.Path(workdir).resolve().name
        page = make_page(model, options, workdir, title=title, attribution=attribution)
        bar.advance()
    with keep_compiled(workdir):
        serve(
            page,
            people,
            place,
            name=name,
            earlier=earlier,
            open_browser=open_browser,
        )


def with_data(model: PersonModel, workdir: str, data: str | None) -> Ranker:
    """Returns the ranker with the dataset of the run, which that of a policy lacks.

    Args:
      model: of the run.
      workdir: the run directory.
      data: where the dataset is, if it has moved.
    """
    if model.steerer is None:
        return model.ranker
    config = saved_model.describe_best(workdir)["config"]
    path = data or config["task"]["path"]
    return dataclasses.replace(model.ranker, data_path=path, workdir=workdir)


def find_port(port: int | None) -> socket.socket:
    """Returns a socket that is bound to a port of this machine.

    Args:
      port: the port; None for the first free one from 8000 on.

    Raises:
      InputError: if it is taken.
    """
    tried = [port] if port is not None else range(_FIRST_PORT, _FIRST_PORT + _NUM_PORTS)
    for number in tried:
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((_HOST, number))
            return found
        except OSError as error:
            found.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    where = f"port {port} is" if port is not None else "ports 8000 to 8099 are"
    raise InputError(f"`port`: {where} taken on this machine; name another one")


def people_of(workdir: str) -> str:
    """Returns the file of people of a run directory.

    Raises:
      InputError: if it cannot be written.
    """
    path = pathlib.Path(workdir) / _PEOPLE
    folders.check_writable(
        path.parent, "copy the run to where you may write", name=_PEOPLE
    )
    return str(path)


def make_page(
    model: PersonModel,
    options: Sequence[Any],
    workdir: str,
    *,
    title: str,
    attribution: str = "",
) -> PageModel:
    """Makes what the page shows, and compiles what its first answers run.

    Args:
      model: of the run.
      options: that are asked about.
      workdir: the run directory.
      title: name of the run.
      attribution: where the options are from, if that has to be said.

    Raises:
      InputError: if there is no question to ask about the options.
    """
    has_z = model.ranker.model.latent_dim > 0
    page = PageModel(
        model,
        options,
        crowd.load(model, workdir) if has_z else None,
        title=title,
        attribution=attribution,
    )
    page.session()
    if page.view([])["question"] is None:
        raise InputError(
            "nothing to ask: give at least two different options that answer the same "
            "prompt"
        )
    return page


def serve(
    page: PageModel,
    people: str,
    place: socket.socket,
    *,
    name: str,
    earlier: Sequence[dict[str, Any]] = (),
    open_browser: bool = False,
) -> None:
    """Serves a page until Ctrl-C.

    Args:
      page: what is shown.
      people: the file that answers are kept in.
      place: see `find_port`.
      name: of the person.
      earlier: answers from before, which the person gets if they are not there.
      open_browser: whether to open the page.
    """
    service = Service(page.model, PeopleStore(people), Limits())
    add_earlier(service, name, earlier)
    app, writer = make_page_app(page, service, person=name)
    if writer:
        writer.warm_up()
    address = f"http://{_HOST}:{place.getsockname()[1]}"
    print(f"The page is at {address} until Ctrl-C.", flush=True)
    if open_browser:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False
    )
    # The server passes Ctrl-C on when it has ended.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([place])
    if writer:
        writer.close()
    service.store.close()
    print(f"Stopped; answers are kept in {people}.")


def add_earlier(service: Service, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Gives a person the answers of a table, each once."""
    if name not in service.store:
        service.store.add(name)
    for number, row in enumerate(rows, 1):
        service.add_answer(name, tables.of_row(row), f"earlier-{number}")
