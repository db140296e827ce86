"""Serves people over HTTP: `fsa serve --workdir=DIR ...`.

People, what they told, rankings, the next question, and, for a policy, adapters
and OpenAI's `/v1/chat/completions`, in which `model` names a person. At / is the page
of `fsa ask --page`. People are kept in WORKDIR/people.sqlite; the routes are described
at /openapi.json, and in docs/serve.md.

    fsa serve --workdir=runs/mine

    --host=0.0.0.0 --token_file=FILE  for other machines, which show a token
    --engine=http://127.0.0.1:8001    a running vLLM writes, with each adapter
    --options=FILE                    a table of what the page asks about
    --nopage                          serve the API alone

By default only this machine is served. The administrator's token is what
--token_file holds, or the environment variable FSA_ADMIN_TOKEN. Ctrl-C and
SIGTERM let answers that were begun come to their end.
"""

import contextlib
import os
import pathlib
import signal
import socket

import uvicorn
from absl import flags
from fastapi import APIRouter

from fsa import bars
from fsa.commands import ask_page, asked_options, command_line
from fsa.errors import InputError
from fsa.serving.app import make_app
from fsa.serving.chat import OwnWriter, Writer
from fsa.serving.engine import EngineWriter
from fsa.serving.metrics import Metrics
from fsa.serving.page.app import page_routes
from fsa.serving.people import PeopleStore
from fsa.serving.person_model import PersonModel
from fsa.serving.security import Access, is_loopback
from fsa.serving.service import Limits, Service
from fsa.training import run_directory
from fsa.training.compile_cache import keep_compiled

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory.", required=True)
_PEOPLE = flags.DEFINE_string(
    "people", None, "File of people; by default people.sqlite in the run directory."
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0 for any free one.", 0, 65535)
_TOKEN_FILE = flags.DEFINE_string(
    "token_file", None, "File with the administrator's token."
)
_ENGINE = flags.DEFINE_string("engine", None, "Address of a running vLLM.")
_ADAPTERS = flags.DEFINE_string(
    "adapters", None, "Folder for adapters, which the engine reads; with --engine."
)
_EMBEDDER = flags.DEFINE_string("embedder", None, "Folder of an embedding model.")
_DATA = flags.DEFINE_string(
    "data", None, "Where the dataset of the run is, if it has moved."
)
_MODEL = flags.DEFINE_string(
    "model", None, "Where the language model of the run is, if it has moved."
)
_PAGE = flags.DEFINE_bool("page", True, "Serve the page of `fsa ask --page`, too.")
_OPTIONS = flags.DEFINE_string(
    "options", None, "Table of what the page asks about; by default items of the run."
)
_TEXTS = flags.DEFINE_integer(
    "texts_at_once", 8, "Texts that are written in one batch.", 1, 1024
)
_LIMITS = Limits()
_MAX_BODY = flags.DEFINE_integer("max_body", _LIMITS.body, "Bytes of a request.", 1024)
_MAX_ANSWERS = flags.DEFINE_integer(
    "max_answers", _LIMITS.answers, "Answers of a person.", 1
)
_MAX_OPTIONS = flags.DEFINE_integer(
    "max_options", _LIMITS.options, "Options of a ranking or a question.", 2
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", _LIMITS.new_tokens, "Tokens of a text.", 1
)
_MAX_REQUESTS = flags.DEFINE_integer(
    "max_requests", _LIMITS.requests, "Requests at once.", 1
)
_MAX_WAITING = flags.DEFINE_integer(
    "max_waiting", _LIMITS.waiting, "Texts that wait to be begun.", 0
)

_TOKEN_VARIABLE = "FSA_ADMIN_TOKEN"
_SHORTEST_TOKEN = 16
# Who uses the page without a token of a person, as in `fsa ask`.
_PERSON = "me"
# Seconds that answers have to come to their end.
_PATIENCE = 60


def main(argv):
    """Loads the run and serves until a signal comes."""
    command_line.refuse_arguments(argv)
    loopback, token = is_loopback(_HOST.value), _read_token()
    _check_flags(loopback, token)
    own = _bind()
    with keep_compiled(_WORKDIR.value):
        with bars.Bar(3, "Preparing", "part") as bar:
            bar.say("loading the run")
            service = _load()
            metrics = Metrics()
            writer = _make_writer(service, metrics)
            bar.advance()
            bar.say("compiling what the first requests run")
            service.warm_up()
            if writer:
                writer.warm_up()
            bar.advance()
            bar.say("drawing the page")
            access = Access(service.store, token)
            app = make_app(
                service,
                access,
                loopback=loopback,
                writer=writer,
                metrics=metrics,
                pages=_pages(service, access, writer),
            )
            bar.advance()
        own.listen()
        where = _address(own)
        print(f"Serving {_WORKDIR.value} at {where}; Ctrl-C ends it", flush=True)
        _server(app, loopback=loopback).run([own])
        if writer:
            writer.close()
        service.store.close()
    print("Stopped; people are kept in", service.store.path)


def _load() -> Service:
    people = _PEOPLE.value or os.fspath(
        run_directory.locate(_WORKDIR.value) / "people.sqlite"
    )
    limits = Limits(
        body=_MAX_BODY.value,
        answers=_MAX_ANSWERS.value,
        options=_MAX_OPTIONS.value,
        new_tokens=_MAX_NEW_TOKENS.value,
        requests=_MAX_REQUESTS.value,
        waiting=_MAX_WAITING.value,
    )
    model = PersonModel.load(
        _WORKDIR.value,
        embedder=_EMBEDDER.value,
        data=_DATA.value,
        model=_MODEL.value,
    )
    return Service(model, PeopleStore(people), limits)


def _make_writer(service: Service, metrics: Metrics) -> Writer | None:
    if service.model.steerer is None:
        if _ENGINE.value:
            raise InputError("`engine`: this run is of a reward model, which has none")
        return None
    if _ENGINE.value:
        return EngineWriter(service, metrics, _ENGINE.value, _ADAPTERS.value)
    return OwnWriter(service, metrics, rows=_TEXTS.value)


def _pages(service: Service, access: Access, writer: Writer | None) -> list[APIRouter]:
    """Returns the routes of the page, unless it is not wanted."""
    if not _PAGE.value:
        return []
    workdir, model = _WORKDIR.value, service.model
    try:
        if _OPTIONS.value:
            options = asked_options.read(_OPTIONS.value)
        else:
            ranker = ask_page.with_data(model, workdir, _DATA.value)
            options, _ = asked_options.of_run(ranker)
        title = pathlib.Path(workdir).resolve().name
        page = ask_page.make_page(model, options, workdir, title=title)
    except InputError as error:
        raise InputError(f"{error}; or serve without the page by --nopage") from error
    return page_routes(page, service, access, writer, person=_PERSON)


def _check_flags(loopback: bool, token: str | None) -> None:
    """Raises InputError for flags that do not go together."""
    if not loopback and token is None:
        raise InputError(
            f"`host`={_HOST.value}: other machines need a token; give the "
            f"administrator's by `token_file` or in {_TOKEN_VARIABLE}"
        )
    if _OPTIONS.value and not _PAGE.value:
        raise InputError("`options`: is what the page asks about; leave out --nopage")
    if (_ENGINE.value is None) != (_ADAPTERS.value is None):
        raise InputError("give `engine` and `adapters` together")
    if _ENGINE.value and not _ENGINE.value.startswith(("http://", "https://")):
        raise InputError(f"`engine`={_ENGINE.value}: give http://HOST:PORT")


def _read_token() -> str | None:
    """Returns the administrator's token, if there is one."""
    token, where = os.environ.get(_TOKEN_VARIABLE), _TOKEN_VARIABLE
    if _TOKEN_FILE.value:
        where = f"`token_file`={_TOKEN_FILE.value}"
        try:
            token = pathlib.Path(_TOKEN_FILE.value).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: cannot be read ({error})") from error
    if token is None:
        return None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or " " in token:
        raise InputError(
            f"{where}: a token has at least {_SHORTEST_TOKEN} letters and digits; make "
            "one by: openssl rand -hex 32"
        )
    return token


def _bind() -> socket.socket:
    """Takes the port, at which nothing is listened to yet."""
    family = socket.AF_INET6 if ":" in _HOST.value else socket.AF_INET
    own = socket.socket(family)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        own.bind((_HOST.value, _PORT.value))
    except OSError as error:
        raise InputError(
            f"`host`={_HOST.value} `port`={_PORT.value}: {error.strerror or error}; "
            "choose another one"
        ) from error
    return own


def _address(own: socket.socket) -> str:
    host, port = own.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """A server that ends as usual after SIGTERM or Ctrl-C, and does not raise them."""

    @contextlib.contextmanager
    def capture_signals(self):
        """Notes the signals while it is entered."""
        both = signal.SIGINT, signal.SIGTERM
        before = {number: signal.signal(number, self.handle_exit) for number in both}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _server(app, *, loopback: bool) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            # httptools, if it is there, takes less time, but headers of any length; so
            # where others can send them, h11, which takes 64 KiB.
            http="auto" if loopback else "h11",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_PATIENCE,
        )
    )
