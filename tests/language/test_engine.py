"""Samples through a serving engine, which a small server stands in for."""

import json

import pytest
from openai_server import serving

from fsa.errors import InputError
from fsa.language import engine as engine_module
from fsa.language.engine import Engine


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(engine_module, "_WAITS", (0.0, 0.0))
    with serving() as found:
        yield found


def test_chats(server):
    engine = Engine(server.url, "small", system="Be brief.", key="secret")
    chat = json.dumps(
        [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]
    )
    found = engine.sample(["a", chat], 3, max_new_tokens=7, at_once=1)
    assert [[x.partition(":")[0] for x in own] for own in found] == [
        ["a"] * 3,
        ["b"] * 3,
    ]
    assert len({x for own in found for x in own}) == 6
    (path, body, headers), (_, other, _) = server.requests
    assert (
        path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    )
    assert body == {
        "model": "small",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
        ],
        "n": 3,
        "max_tokens": 7,
        "temperature": 1.0,
        "top_p": 1.0,
    }
    assert [x["content"] for x in other["messages"]] == ["s", "b"]


def test_continuations(server):
    engine = Engine(f"{server.url}/v1/", "small", completions=True, separator=" ")
    options = dict(max_new_tokens=7, temperature=0.5, top_k=9, top_p=0.8, stop=["\n"])
    ((found,),) = engine.sample(["a"], 1, **options)
    assert found == "a 1.0"
    ((path, body, _),) = server.requests
    assert path == "/v1/completions"
    sent = {name: body[name] for name in ("temperature", "top_k", "top_p", "stop")}
    assert sent == {"temperature": 0.5, "top_k": 9, "top_p": 0.8, "stop": ["\n"]}


def test_an_engine_that_gives_one_answer_is_asked_again(server):
    server.most = 2
    (found,) = Engine(server.url, "small").sample(["a"], 5, max_new_tokens=7)
    assert len(found) == len(set(found)) == 5
    assert [body["n"] for _, body, _ in server.requests] == [5, 3, 1]


def test_an_engine_that_fails_for_a_moment_is_asked_again(server):
    failures = [(503, "busy"), (429, "")]
    server.fail = lambda body: failures.pop() if failures else None
    (found,) = Engine(server.url, "small").sample(["a"], 2, max_new_tokens=7)
    assert len(found) == 2 and not failures


def test_what_the_engine_has(server):
    Engine(server.url, "ann").check()
    with pytest.raises(InputError, match="smal: .*did you mean small.*small, ann"):
        Engine(server.url, "smal").check()


REFUSED = {
    "its words": ((400, '{"error": {"message": "too\\nlong"}}'), r"400.*too\nlong"),
    "text": ((404, "Not Found"), "404.*Not Found"),
    "nothing": ((401, ""), "401.*Unauthorized"),
    "a failure that stays": ((500, '{"message": "out of memory"}'), "500.*out of"),
    "no JSON": ((200, "hello"), "OpenAI"),
    "no answers": ((200, '{"choices": []}'), "OpenAI"),
    "other JSON": ((200, "[]"), "OpenAI"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_errors(server, what):
    server.fail = lambda body: REFUSED[what][0]
    engine = Engine(server.url, "small")
    with pytest.raises(
        InputError, match=f"(?s)`engine`={server.url}: .*{REFUSED[what][1]}"
    ):
        engine.sample(["a"] * 9, 2, max_new_tokens=7)


def test_no_engine_there(monkeypatch):
    with serving() as server:
        url = server.url
    monkeypatch.setattr(engine_module, "_WAITS", (0.0,))
    with pytest.raises(InputError, match=f"{url}: no answer .*start the engine"):
        Engine(url, "small").check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(url="localhost:8000"), "`engine`=localhost:8000"),
        (dict(completions=True, system="s"), "system"),
        (dict(template_arguments="[]"), "template_arguments"),
    ],
)
def test_engines_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        Engine(**{"url": "http://localhost", "model": "small", **arguments})


def test_messages_are_no_plain_text(server):
    engine = Engine(server.url, "small", completions=True)
    with pytest.raises(InputError, match="completions"):
        engine.sample(['[{"role": "user", "content": "a"}]'], 1, max_new_tokens=7)
