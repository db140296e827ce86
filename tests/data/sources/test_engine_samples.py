"""Sampling through an engine is repeated without losing what was sampled."""

import json

import pytest
from openai_server import serving

from fsa.data.sources.engine_samples import partial_file, sample_answers
from fsa.errors import InputError
from fsa.language import engine as engine_module
from fsa.language.engine import Engine

PROMPTS = {"a": "train", "b": "test", "c": "valid", "d": "train"}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(engine_module, "_WAITS", ())
    with serving() as found:
        yield found


def sample(server, partial, num_samples=2, **options):
    options = dict(max_new_tokens=7, at_once=1) | options
    engine = Engine(server.url, "small")
    return sample_answers(engine, PROMPTS, num_samples, partial, **options)


def asked(server):
    return [body["messages"][0]["content"] for _, body, _ in server.requests]


def test_rows(server, tmp_path):
    rows = sample(server, tmp_path / "p")
    assert [row["prompt"] for row in rows] == [p for p in PROMPTS for _ in range(2)]
    assert all(row["answer"].startswith(row["prompt"]) for row in rows)
    assert {row["prompt"]: row["split"] for row in rows} == PROMPTS
    assert partial_file(tmp_path / "a.jsonl").parent == tmp_path


def test_it_goes_on_where_it_was_interrupted(server, tmp_path):
    partial = tmp_path / "p"
    begun = {"a", "b"}
    server.fail = lambda body: (
        None if body["messages"][0]["content"] in begun else (500, "broken")
    )
    with pytest.raises(InputError, match="broken"):
        sample(server, partial)
    kept = [json.loads(line) for line in partial.read_text().splitlines()[1:]]
    assert [row["prompt"] for row in kept] == ["a", "b"]
    # The process may have died while it wrote a line.
    with partial.open("a") as file:
        file.write('{"prompt": "c", "ans')
    server.fail = lambda body: None
    server.requests.clear()
    rows = sample(server, partial)
    assert asked(server) == ["c", "d"]
    assert [row["answer"] for row in rows[:4]] == [
        text for row in kept for text in row["answers"]
    ]
    # The whole is there now, and nothing is asked any more.
    server.requests.clear()
    assert sample(server, partial) == rows and not server.requests


@pytest.mark.parametrize("change", [{"num_samples": 3}, {"temperature": 0.5}])
def test_other_settings_do_not_go_on(server, tmp_path, change):
    sample(server, tmp_path / "p")
    before = (tmp_path / "p").read_bytes()
    with pytest.raises(InputError, match="other settings"):
        sample(server, tmp_path / "p", **change)
    assert (tmp_path / "p").read_bytes() == before


def test_a_file_that_is_something_else_is_kept(server, tmp_path):
    (tmp_path / "p").write_text("mine\n")
    with pytest.raises(InputError, match="other settings"):
        sample(server, tmp_path / "p")
    assert (tmp_path / "p").read_text() == "mine\n"
