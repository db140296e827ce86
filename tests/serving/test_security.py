"""Who is shown what: hosts, origins, tokens, and requests at once."""

import asyncio
import re
import threading

import pytest
import served
from served import ADMIN_TOKEN, line_of, ok, vectors

from fsa.serving.person_model import PersonModel
from fsa.serving.security import Gate, is_loopback
from fsa.serving.service import Limits

pytestmark = pytest.mark.usefixtures("quick_compile")

A = vectors(4)
CHOICE = {"chosen": A[0], "rejected": A[1]}


@pytest.fixture(scope="module")
def model():
    return PersonModel(served.make_ranker())


@pytest.fixture
def service(model, tmp_path):
    return served.make_service(tmp_path, model)


def with_token(service, token, **options):
    given = dict(loopback=False, address="https://people.example") | options
    return served.client_of(service, token=token, **given)


@pytest.fixture
def people(service):
    """Clients of the administrator, of ann and of bob, each with one answer."""
    admin = with_token(service, ADMIN_TOKEN)
    found = {"admin": admin}
    for name, answer in (("ann", CHOICE), ("bob", {"liked": A[2]})):
        token = ok(admin.post("/v1/people", json={"name": name}))["token"]
        found[name] = with_token(service, token)
        path = f"/v1/people/{name}/answers"
        ok(found[name].post(path, json={**answer, "id": "mine"}))
    return found


def routes(name):
    """(method, path, body) of all that concerns one person."""
    person = f"/v1/people/{name}"
    options = {"options": A}
    message = {"role": "user", "content": "Hello"}
    return [
        ("GET", person, None),
        ("GET", f"{person}/answers", None),
        ("POST", f"{person}/answers", {"liked": A[3], "id": "new"}),
        ("DELETE", f"{person}/answers/new", None),
        ("POST", f"{person}/rank", options),
        ("POST", f"{person}/question", options),
        ("GET", f"{person}/adapter", None),
        ("GET", f"/v1/models/{name}", None),
        ("POST", "/v1/chat/completions", {"model": name, "messages": [message]}),
    ]


ADMINS = [
    ("POST", "/v1/people", {"name": "cid"}),
    ("POST", "/v1/people/ann/token", None),
    ("DELETE", "/v1/people/ann", None),
    ("GET", "/metrics", None),
]


def all_paths(client):
    """Every (method, path) that the server describes."""
    described = ok(client.get("/openapi.json"))["paths"]
    return {
        (method.upper(), path)
        for path, methods in described.items()
        for method in methods
    }


def test_every_route_is_among_those_tested(people):
    """A new route has to be added to the tables above, or it is untested."""
    tested = {(method, path) for method, path, _ in [*routes("{name}"), *ADMINS]}
    tested = {(m, path.replace("ann", "{name}")) for m, path in tested}
    tested = {(m, path.replace("answers/new", "answers/{id}")) for m, path in tested}
    listing = {("GET", "/v1/people"), ("GET", "/v1/models"), ("GET", "/health")}
    assert all_paths(people["admin"]) == tested | listing


def test_a_token_shows_only_its_person(people):
    before = ok(people["admin"].get("/v1/people/bob"))
    for method, path, body in routes("bob"):
        theirs = people["ann"].request(method, path, json=body)
        # The same words as about somebody who is not there.
        line = line_of(theirs, 404)
        unknown = path.replace("bob", "eve")
        of_eve = body and {**body, **({"model": "eve"} if "model" in body else {})}
        nobody = people["ann"].request(method, unknown, json=of_eve)
        assert line_of(nobody, 404) == line.replace("bob", "eve")
    assert ok(people["admin"].get("/v1/people/bob")) == before
    for method, path, body in routes("ann"):
        own = people["ann"].request(method, path, json=body)
        # A reward model has no adapter and writes nothing, which it says.
        wanted = (400,) if "adapter" in path or "chat" in path else (200, 201, 204)
        assert own.status_code in wanted, (method, path, own.text)
    assert ok(people["ann"].get("/v1/people"))["people"] == ["ann"]
    models = ok(people["bob"].get("/v1/models"))["data"]
    assert [model["id"] for model in models] == ["bob"]
    line_of(people["ann"].get("/v1/models/nobody"), 404)


def test_what_only_an_administrator_may_do(people):
    for method, path, body in ADMINS:
        line_of(people["ann"].request(method, path, json=body), 403)
    assert ok(people["admin"].get("/v1/people"))["people"] == ["ann", "bob"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {ADMIN_TOKEN}",
        f"Bearer {ADMIN_TOKEN[:-1]}",
        f"Bearer {ADMIN_TOKEN}x",
        ADMIN_TOKEN,
        "Bearer \xe9",
        "Bearer /admin",
    ],
)
def test_wrong_tokens_see_nothing(people, service, header):
    client = with_token(service, ADMIN_TOKEN)
    client.headers.pop("Authorization")
    sent = []
    if header is not None:
        sent = [(b"Authorization", header.encode("latin-1"))]
    listing = [("GET", "/v1/people", None), ("GET", "/v1/models", None)]
    for method, path, body in [*routes("ann"), *routes("eve"), *ADMINS, *listing]:
        response = client.request(method, path, json=body, headers=sent)
        assert "ann" not in line_of(response, 401)
    assert client.get("/health").status_code == 200


def test_a_new_token_ends_the_old_one(people, service):
    token = ok(people["admin"].post("/v1/people/ann/token"))["token"]
    line_of(people["ann"].get("/v1/people/ann"), 401)
    assert ok(with_token(service, token).get("/v1/people"))["people"] == ["ann"]
    people["admin"].delete("/v1/people/ann")
    line_of(with_token(service, token).get("/v1/people"), 401)


def test_tokens_are_asked_for_on_the_loopback_address_if_there_is_one(service):
    client = served.client_of(service, token="wrong")
    line_of(client.get("/v1/people"), 401)


HOSTS = ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "[", "0.0.0.0"]
ORIGINS = [
    "http://evil.example",
    "null",
    "",
    "http://127.0.0.1:9999",
    "https://127.0.0.1:8000",
    "http://localhost:8000",
    "http://127.0.0.1:8000.evil.example",
    "file://",
]


def test_pages_of_other_origins_cannot_do_anything(service):
    client = served.client_of(service)
    ok(client.post("/v1/people", json={"name": "ann"}))
    for origin in ORIGINS:
        for method, path, body in [*routes("ann"), *ADMINS]:
            response = client.request(
                method, path, json=body, headers={"Origin": origin}
            )
            line_of(response, 403)
    # As a form would send it, without a question of the browser beforehand.
    response = client.post(
        "/v1/people",
        content='{"name": "eve"}',
        headers={"Origin": ORIGINS[0], "Content-Type": "text/plain"},
    )
    line_of(response, 403)
    assert ok(client.get("/v1/people"))["people"] == ["ann"]
    own = {"Origin": served.ADDRESS}
    ok(client.post("/v1/people", json={"name": "bob"}, headers=own))


def test_names_that_resolve_to_this_machine_are_refused(service):
    client = served.client_of(service)
    for host in HOSTS:
        line_of(client.get("/v1/people", headers={"Host": host}), 403)
    for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:8000"):
        ok(client.get("/v1/people", headers={"Host": host}))


def test_loopback_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def call(app, *messages, headers=()):
    """Sends one request to an ASGI application; returns the status of its answer."""
    sent, waiting = [], list(messages)

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": list(headers)}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"]


def test_bodies():
    got = []

    async def app(scope, receive, send):
        got.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def part(body, more=False):
        return {"type": "http.request", "body": body, "more_body": more}

    gate = Gate(app, Limits(body=5), loopback=False)
    assert call(gate, part(b"123", True), part(b"45")) == 200
    assert call(gate, part(b"123", True), part(b"456")) == 413
    assert call(gate, part(b"123", True)) == 400
    for length in (b"6", b"9" * 30, b"-1", b"x", b""):
        headers = [(b"content-length", length)]
        assert call(gate, part(b"1"), headers=headers) == 413
    assert got == [b"12345"]


def test_no_more_requests_at_once_than_the_limit(service, monkeypatch):
    """What is begun is answered; what comes on top is asked to come again."""
    service.limits = Limits(requests=2)
    client = served.client_of(service)
    ok(client.post("/v1/people", json={"name": "ann"}))
    entered, leave = threading.Semaphore(0), threading.Event()
    names = service.store.names

    def slow():
        entered.release()
        assert leave.wait(60)
        return names()

    monkeypatch.setattr(service.store, "names", slow)
    found = []
    with client:  # One event loop for all requests.
        threads = [
            threading.Thread(target=lambda: found.append(client.get("/v1/people")))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
            assert entered.acquire(timeout=60)
        response = client.get("/health")
        line_of(response, 503)
        assert response.headers["Retry-After"] == "1"
        leave.set()
        for thread in threads:
            thread.join()
        assert [ok(each) for each in found] == [{"people": ["ann"]}] * 2
        ok(client.get("/health"))


def test_errors_do_not_repeat_secrets(people):
    line = line_of(people["ann"].post("/v1/people", json={"name": "secret/" * 9}), 403)
    assert not re.search("secret", line)
