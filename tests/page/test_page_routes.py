"""The routes of the page, as its script asks for them."""

import io
import itertools
import re

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib import image

from fsa.data import columns

# Their page takes half a minute; quick tests of the page are in test_page_writing.py.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]


@pytest.fixture
def ask(client):
    """Posts to a route of the person `me`; returns what comes back."""

    def ask(route, **body):
        response = client.post(f"/page/people/me/{route}", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


def answer(ask, view, kind="chosen", turn=0):
    first, second = view["question"]
    pair = [first, second] if turn == 0 else [second, first]
    return ask("answers", kind=kind, options=pair if kind != "liked" else pair[:1])


def test_the_session_describes_options_and_map(client, page):
    found = client.get("/page/session").json()
    assert found["title"] == "drinks" and found["attribution"] == "Ours."
    assert found["takes"] == {"tie": True, "vote": True} and found["can_choose"]
    assert [each["text"] for each in found["options"][:2]] == ["tea", "coffee"]
    (left, bottom), (width, height) = found["map"]["bounds"]
    places = np.array([place for place, _ in found["map"]["people"]])
    assert len(places) == 6
    assert ((places - [left, bottom]) / [width, height] > 0).all()
    assert ((places - [left, bottom]) / [width, height] < 1).all()
    ends = {name for axis in found["map"]["axes"] for name in axis.values()} - {""}
    assert ends <= {each["short"] for each in found["options"]}


def test_an_answer_changes_what_is_believed(ask):
    before = ask("view")
    assert before["answers"] == [] and before["moved"] == []
    after = answer(ask, before)
    assert len(after["answers"]) == 1
    chosen, rejected = before["question"]
    assert set(after["question"]) != {chosen, rejected}
    assert after["place"] != before["place"]
    gained = {each["option"]: each["to"] - each["from"] for each in after["moved"]}
    assert gained[chosen] > 0 > gained[rejected]
    farthest = [abs(x) for x in gained.values()]
    assert farthest == sorted(farthest, reverse=True)
    rank = [each["option"] for each in after["ranking"]]
    assert sorted(rank) == list(range(len(rank)))
    assert all(0 <= r["low"] <= r["probability"] <= r["high"] for r in after["ranking"])


def test_it_says_what_the_ranker_says(ask, page):
    question = ask("view")["question"]
    view = ask("answers", kind="chosen", options=question)
    chosen, rejected = (page.options[i] for i in question)
    told = {"chosen": [chosen], "rejected": [rejected]}
    ranking = page.model.ranker.rank(page.options, **told)
    shown = {each["option"]: each["probability"] for each in view["ranking"]}
    assert np.allclose([shown[i] for i in range(len(shown))], ranking.probability)
    expected = page.model.ranker.questions(page.options, **told)
    assert np.isclose(view["certainty"]["now"], expected.expected_accuracy)
    assert view["question"] == list(expected.best()[:2])


def test_undo_brings_everything_back(ask):
    before = answer(ask, ask("view"))
    answer(ask, before, turn=1)
    again = ask("undo")
    for part in ("question", "place", "ranking", "certainty", "answers"):
        assert again[part] == before[part]
    ask("undo")
    assert ask("undo")["answers"] == []


def test_skipped_pairs_are_not_asked_again_and_nothing_is_recorded(ask):
    seen, view = [], ask("view")
    while view["question"] and len(seen) < 5:
        seen.append(view["question"])
        view = ask("view", skipped=seen)
    assert len({frozenset(pair) for pair in seen}) == 5 and view["answers"] == []
    everything = list(itertools.combinations(range(9), 2))
    assert ask("view", skipped=everything)["question"] is None


def test_random_questions_are_not_those_that_tell_most(ask):
    assert ask("view", random=True)["question"] != ask("view")["question"]


@pytest.mark.parametrize("kind", ["tied", "liked", "disliked"])
def test_other_answers_count(ask, kind):
    view = ask("view")
    options = view["question"] if kind == "tied" else view["question"][:1]
    after = ask("answers", kind=kind, options=options)
    assert len(after["answers"]) == 1 and after["place"] != view["place"]
    if kind != "tied":
        moved = {each["option"]: each["to"] - each["from"] for each in after["moved"]}
        assert (moved[options[0]] > 0) == (kind == "liked")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_choices_are_a_table_that_commands_and_the_page_read(
    client, ask, ending, tmp_path
):
    view = answer(ask, answer(ask, ask("view")), "tied")
    view = answer(ask, answer(ask, view, turn=1), "liked")
    table = client.get(f"/page/people/me/choices.{ending}")
    path = tmp_path / f"me.{ending}"
    path.write_bytes(table.content)
    kinds = [next(iter(told)) for _, told in columns.read_told(path)]
    assert kinds == ["chosen", "tied", "chosen", "liked"]
    name = {"file": path.name}
    binary = {"content-type": "application/octet-stream"}
    loaded = client.post(
        "/page/people/you/table", params=name, content=table.content, headers=binary
    )
    assert loaded.json() == {"answers": 4}
    other = client.post("/page/people/you/view", json={}).json()
    mine = ask("view")
    assert other["place"] == mine["place"] and other["ranking"] == mine["ranking"]
    place = client.post(
        "/page/place", params=name, content=table.content, headers=binary
    )
    found = place.json()
    assert found["place"] == mine["place"] and found["answers"] == 4
    assert found["z"] == client.get("/v1/people/me").json()["z"]
    assert client.get("/v1/people").json() == {"people": ["me", "you"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("me.xlsx", b"chosen", "choose a table"),
        ("me.csv", b"chosen,rejected\n", "no rows"),
        ("me.csv", b"chosen,rejected\ntea,gin\n", "row 2"),
        ("me.csv", b"\xff\xfe\x00", "UTF-8"),
        ("me.jsonl", b'{"chosen": "tea", "rejected": "tea"}\n', "row 1"),
    ],
)
def test_a_table_that_cannot_be_used(client, ask, name, content, message):
    response = client.post(
        "/page/people/me/table",
        params={"file": name},
        content=content,
        headers={"content-type": "application/octet-stream"},
    )
    error = response.json()["error"]["message"]
    assert response.status_code == 400 and message in error and "/tmp" not in error
    assert ask("view")["answers"] == []


def test_the_report_says_what_the_page_says(client, ask):
    view = answer(ask, ask("view"))
    text = client.get("/page/people/me/report.md").text
    assert "After 1 choice." in text and "Ours." in text
    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert "<table>" in shown and not re.search("<(a|img|script|b)[ >]", shown)
    first = view["ranking"][0]
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert f"| {100 * first['probability']:.0f} |" in row
    picture = client.get("/page/people/me/report.png")
    assert picture.headers["content-type"] == "image/png"
    pixels = image.imread(io.BytesIO(picture.content))
    assert pixels.shape[1] > 1000 and pixels.std() > 0.01


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "chosen", "options": [0]},
        {"kind": "chosen", "options": [0, 99]},
        {"kind": "chosen", "options": [-1, 0]},
        {"kind": "chosen", "options": [1, 1]},
        {"kind": "liked", "options": [0, 1]},
        {"kind": "rated", "options": [0]},
    ],
)
def test_answers_that_cannot_be(client, ask, body):
    response = client.post("/page/people/me/answers", json=body)
    assert 400 <= response.status_code < 500
    assert "\n" not in response.json()["error"]["message"]
    assert ask("view")["answers"] == []


@pytest.mark.parametrize("name", ["-x", "x" * 101, "a%00b", "a%0Ab", "%3Cb%3E"])
def test_names_that_nobody_can_have(client, name):
    response = client.post(f"/page/people/{name}/view", json={})
    assert (
        response.status_code == 400 and client.get("/v1/people").json()["people"] == []
    )


def test_files_may_load_nothing_of_another_origin(client):
    index = client.get("/")
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy
    assert "unsafe" not in policy and "//" not in index.text
    for name in ("page.js", "page.css", "icon.svg"):
        assert client.get(f"/{name}").status_code == 200
    for name in ("routes.py", "..%2Froutes.py", "none.js"):
        assert client.get(f"/{name}").status_code == 404


def test_another_origin_may_not_answer(client, ask):
    body = {"kind": "chosen", "options": [0, 1]}
    headers = {"origin": "http://evil.example"}
    refused = client.post("/page/people/me/answers", json=body, headers=headers)
    assert refused.status_code == 403 and ask("view")["answers"] == []
