"""The page of a server that asks for tokens, as `fsa serve` does for other machines."""

import pytest
import serving_pages
from fastapi.testclient import TestClient

pytestmark = pytest.mark.usefixtures("quick_compile")

ADMIN = "the-token-of-the-administrator"


@pytest.fixture
def clients(page, tmp_path):
    """Clients of nobody, of the administrator, and of ann and bob."""
    app = serving_pages.guarded(page, tmp_path, ADMIN)

    def client(token=None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return TestClient(app, base_url="http://people.example", headers=headers)

    found = {"nobody": client(), "admin": client(ADMIN)}
    for name in ("ann", "bob"):
        added = found["admin"].post("/v1/people", json={"name": name})
        found[name] = client(added.json()["token"])
    return found


def routes(name):
    """(method, path, body) of what the page asks about a person."""
    person = f"/page/people/{name}"
    given = {"kind": "chosen", "options": [0, 1]}
    table = "/table?file=a.csv"
    return [
        ("POST", f"{person}/view", {}),
        ("POST", f"{person}/answers", given),
        ("POST", f"{person}/undo", {}),
        ("POST", f"{person}{table}", {}),
        ("GET", f"{person}/choices.csv", None),
        ("GET", f"{person}/report.md", None),
        ("GET", f"{person}/report.png", None),
    ]


SHARED = [("GET", "/page/session", None), ("POST", "/page/place?file=a.csv", {})]


def test_files_are_seen_by_all_and_nothing_else(clients):
    for path in ("/", "/page.js", "/api.js", "/page.css"):
        assert clients["nobody"].get(path).status_code == 200
    for method, path, body in SHARED + routes("ann"):
        answer = clients["nobody"].request(method, path, json=body)
        assert answer.status_code == 401, path


@pytest.mark.parametrize("host", ["a/b", "a?b", "a#b"])
def test_no_host_gets_around_the_token(clients, host):
    for method, path, body in SHARED + routes("ann"):
        answer = clients["nobody"].request(
            method, path, json=body, headers={"Host": host}
        )
        assert answer.status_code in (400, 401), path


def test_a_token_shows_its_person_alone(clients):
    kept = {"kind": "chosen", "options": [0, 1]}
    answered = clients["bob"].post("/page/people/bob/answers", json=kept).json()
    assert len(answered["answers"]) == 1
    for method, path, body in routes("bob"):
        assert clients["ann"].request(method, path, json=body).status_code == 404
    assert clients["bob"].post("/page/people/bob/view", json={}).json() == answered
    # Nobody is added by asking for a name that is not there.
    assert clients["ann"].post("/page/people/eve/view", json={}).status_code == 404
    assert clients["admin"].get("/v1/people").json() == {"people": ["ann", "bob"]}


def test_the_page_is_of_whom_the_token_is(clients):
    names = {
        who: clients[who].get("/page/session").json()["person"]
        for who in ("admin", "ann", "bob")
    }
    assert names == {"admin": "me", "ann": "ann", "bob": "bob"}


def test_what_the_server_cannot_write_is_not_offered(clients):
    assert clients["admin"].get("/page/session").json()["writes"] is False
