"""Servers of tiny models in this process, for the tests of this folder.

Shapes: F features of an option, D latent dimensions, K samples of z.
"""

import contextlib
import socket
import threading

import jax
import numpy as np
import uvicorn
from starlette.testclient import TestClient

from fsa.episodes import Choices, Episode, Options
from fsa.inference.ranker import Ranker
from fsa.models.linear_reward import LinearRewardModel
from fsa.serving.app import make_app
from fsa.serving.people import PeopleStore
from fsa.serving.person_model import PersonModel
from fsa.serving.security import Access
from fsa.serving.service import Limits, Service

F, D, K = 3, 2, 50
LEVELS = (1.0, 2.0, 4.0)
ADMIN_TOKEN = "the-token-of-the-administrator"
ADDRESS = "http://127.0.0.1:8000"


def vectors(count, seed=0, size=F):
    """Options, as lists of numbers."""
    return np.random.default_rng(seed).normal(size=(count, size)).round(3).tolist()


def make_ranker(checkpoint="first", size=F):
    """A reward model that takes all kinds of answers; its parameters are random."""
    model = LinearRewardModel(
        hidden=8, latent_dim=D, num_components=2, context="ratings", levels=LEVELS
    )
    options = Options(np.float32(vectors(1, size=size)), np.full(1, -1, np.int32))
    choices = Choices(options, options, np.ones(1, bool))
    episode = Episode(choices, choices, np.int32(0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), episode)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), shapes["params"]
    )
    statistics = {"mean": np.zeros(size, np.float32), "std": np.ones(size, np.float32)}
    variables = {"params": params, "statistics": {"options": statistics}}
    origin = {"checkpoint": checkpoint}
    return Ranker(model, variables, False, num_samples=K, origin=origin)


def make_service(place, model=None, **limits):
    """People in `people.sqlite` of a folder, and the model of `make_ranker`."""
    model = model or PersonModel(make_ranker())
    store = PeopleStore(place / "people.sqlite")
    return Service(model, store, Limits(**limits))


def client_of(service, *, token=None, loopback=True, address=ADDRESS, **options):
    """A client of a server; with a token the server asks for one."""
    access = Access(service.store, ADMIN_TOKEN if token else None)
    app = make_app(service, access, loopback=loopback, **options)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return TestClient(app, base_url=address, headers=headers)


@contextlib.contextmanager
def listening(service, *, token=None, **options):
    """Serves on a free port of this machine; yields the address."""
    access = Access(service.store, ADMIN_TOKEN if token else None)
    app = make_app(service, access, loopback=True, **options)
    own = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([own],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{own.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def ok(response):
    """The JSON of an answer that is no error."""
    assert response.status_code in (200, 201), response.text
    return response.json()


def line_of(response, *statuses):
    """The message of an error, which is one line in the form of OpenAI's."""
    assert response.status_code in statuses, (response.status_code, response.text)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"]
    return error["message"]
