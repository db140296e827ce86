"""What people told over HTTP has the effect that it has in `Ranker`."""

import concurrent.futures
import dataclasses
import json

import jax
import numpy as np
import pytest
import served
from served import line_of, ok, vectors

from fsa.serving.people import Unknown
from fsa.serving.person_model import PersonModel

pytestmark = pytest.mark.usefixtures("quick_compile")

A = vectors(8)
CHOICE = {"chosen": A[0], "rejected": A[1]}
TOLD = [
    CHOICE,
    {"chosen": A[2], "rejected": A[3], "tie": True},
    {"liked": A[4]},
    {"disliked": A[5]},
    {"item": A[6], "value": 4},
]
OPTIONS = vectors(5, seed=1)


@pytest.fixture(scope="module")
def ranker():
    return served.make_ranker()


@pytest.fixture
def service(ranker, tmp_path):
    made = served.make_service(tmp_path, PersonModel(ranker), body=20_000)
    yield made
    made.store.close()


@pytest.fixture
def client(service):
    return served.client_of(service)


def add(client, name, answers=()):
    ok(client.post("/v1/people", json={"name": name}))
    return [
        ok(client.post(f"/v1/people/{name}/answers", json=answer))["id"]
        for answer in answers
    ]


def z_of(client, name):
    found = ok(client.get(f"/v1/people/{name}"))
    return found["z"], found["std"]


def test_results_are_those_of_the_ranker(client, ranker):
    add(client, "ann", TOLD)
    told = dict(
        chosen=[A[0]],
        rejected=[A[1]],
        tied=[(A[2], A[3])],
        liked=[A[4]],
        disliked=[A[5]],
        rated=[(A[6], 4)],
    )
    z, std = z_of(client, "ann")
    q = ranker.posterior(**told)
    np.testing.assert_array_equal(np.float32(z), q.mean)
    np.testing.assert_array_equal(np.float32(std), q.std)
    asked = {"options": OPTIONS, "seed": 3}
    found = ok(client.post("/v1/people/ann/rank", json=asked))["ranking"]
    ranking = ranker.rank(OPTIONS, seed=3, **told)
    assert [row["position"] for row in found] == ranking.order.tolist()
    assert [row["probability"] for row in found] == pytest.approx(
        ranking.probability[ranking.order].tolist()
    )
    question = ok(client.post("/v1/people/ann/question", json=asked))["question"]
    assert question == pytest.approx(
        ranker.next_question(OPTIONS, seed=3, **told)._asdict()
    )


def test_rankings_without_waiting(client, service, ranker):
    """They have the same bits, and are left to a thread if they may take long."""
    add(client, "ann", TOLD[:4])
    # Nothing was ranked yet, so that programs would be compiled.
    assert service.rank_at_once("ann", OPTIONS) is None
    path, asked = "/v1/people/ann/rank", {"options": OPTIONS, "seed": 3}
    first = ok(client.post(path, json=asked))
    assert ok(client.post(path, json=asked)) == first
    found = service.rank_at_once("ann", OPTIONS, seed=3)
    wanted = service.rank("ann", OPTIONS, seed=3)
    assert found.counts == wanted.counts
    for name in ("probability", "std", "reward", "reward_interval"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert service.rank_at_once("ann", vectors(33)) is None
    assert service.rank_at_once("ann", [*OPTIONS, "tea"]) is None
    assert service.rank_at_once("ann", [*OPTIONS, 7]) is None
    # A rating is looked up among levels.
    add(client, "bob", TOLD)
    ok(client.post("/v1/people/bob/rank", json=asked))
    assert service.rank_at_once("bob", OPTIONS) is None
    with pytest.raises(Unknown):
        service.rank_at_once("eve", OPTIONS)
    # Somebody else may compute meanwhile.
    with service.computing:
        assert service.rank_at_once("ann", OPTIONS) is not None


def test_rankings_while_answers_come(client, service):
    """In the event loop and in threads at once, each is that of some of the answers."""
    answers = [{"chosen": A[i], "rejected": A[i + 1]} for i in range(6)]
    add(client, "ann", answers[:1])
    asked, path = {"options": OPTIONS}, "/v1/people/ann"
    possible = []
    for end in range(1, 7):
        add(client, f"other {end}", answers[:end])
        possible.append(ok(client.post(f"/v1/people/other {end}/rank", json=asked)))

    def run(number):
        if number == 0:
            for answer in answers[1:]:
                ok(client.post(f"{path}/answers", json=answer))
        return [ok(client.post(f"{path}/rank", json=asked)) for _ in range(10)]

    with client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(4)))
    for own in found:
        places = [possible.index(each) for each in own]
        assert places == sorted(places)
    assert found[0][-1] == possible[-1]


def test_z_depends_on_which_answers_there_are(client):
    """Not on their order, and not on those that are gone."""
    ids = add(client, "ann", TOLD)
    add(client, "bob", TOLD[::-1])
    assert z_of(client, "ann") == z_of(client, "bob")
    before = z_of(client, "ann")
    assert client.delete(f"/v1/people/ann/answers/{ids[2]}").status_code == 204
    assert z_of(client, "ann") != before
    add(client, "cid", [answer for answer in TOLD if "liked" not in answer])
    assert z_of(client, "ann") == z_of(client, "cid")
    for own in ids:
        client.delete(f"/v1/people/ann/answers/{own}")
    assert z_of(client, "ann") == z_of(client, "nobody")


def test_a_restart_gives_the_same_bits(client, service, ranker, tmp_path):
    add(client, "ann", TOLD)
    kept = [served.client_of(served.make_service(tmp_path)) for _ in range(2)]
    # Of the first one z is inferred again, the second one finds it.
    assert z_of(kept[0], "ann") == z_of(client, "ann") == z_of(kept[1], "ann")
    answers = [ok(each.get("/v1/people/ann/answers")) for each in (client, *kept)]
    assert answers[0] == answers[1] == answers[2]


def test_under_another_run_z_is_inferred_again(client, ranker, tmp_path):
    add(client, "ann", TOLD)
    before = z_of(client, "ann")
    params = ranker.variables["params"] | {}
    variables = ranker.variables | {
        "params": {name: _scaled(x) for name, x in params.items()}
    }
    other = dataclasses.replace(
        ranker, variables=variables, origin={"checkpoint": "second"}
    )
    model = PersonModel(other)
    again = served.client_of(served.make_service(tmp_path, model))
    found = ok(again.get("/v1/people/ann"))
    assert found["checkpoint"] == "second"
    fresh = model.latent(TOLD)
    assert found["z"] == [float(x) for x in fresh.mean] != before[0]
    # And back.
    assert z_of(client, "ann") == before


def _scaled(tree):
    return jax.tree.map(lambda x: 1.5 * x, tree)


def test_questions_that_are_left(client):
    add(client, "ann")
    asked = {"options": OPTIONS[:3]}
    seen = set()
    for random in (True, False, True):
        wanted = asked | {"leave_out": sorted(seen), "random": random}
        found = ok(client.post("/v1/people/ann/question", json=wanted))["question"]
        assert (found["gain"] is None) == random
        seen.add((found["first"], found["second"]))
    assert seen == {(0, 1), (0, 2), (1, 2)}
    wanted = asked | {"leave_out": sorted(seen)}
    path = "/v1/people/ann/question"
    assert ok(client.post(path, json=wanted)) == {"question": None}
    add(client, "bob", [{"chosen": OPTIONS[i], "rejected": OPTIONS[0]} for i in (1, 2)])
    for random in (True, False):
        found = client.post("/v1/people/bob/question", json=asked | {"random": random})
        question = ok(found)["question"]
        assert (question["first"], question["second"]) == (1, 2)


def test_people_come_and_go(client):
    add(client, "ann", [CHOICE])
    add(client, "björn@home 2")
    listed = ok(client.get("/v1/people"))["people"]
    assert listed == ["ann", "björn@home 2"]
    models = ok(client.get("/v1/models"))["data"]
    assert [model["id"] for model in models] == ["nobody", *listed]
    assert client.delete("/v1/people/ann").status_code == 204
    assert "ann" in line_of(client.get("/v1/people/ann"), 404)
    add(client, "ann")
    assert ok(client.get("/v1/people/ann/answers")) == {"answers": []}


def test_the_api_describes_itself(client):
    described = ok(client.get("/openapi.json"))
    names = {
        f"{method} {path}"
        for path, methods in described["paths"].items()
        for method in methods
    }
    assert {
        "post /v1/people",
        "get /v1/people/{name}",
        "post /v1/people/{name}/answers",
        "delete /v1/people/{name}/answers/{id}",
        "post /v1/people/{name}/rank",
        "post /v1/people/{name}/question",
        "get /v1/people/{name}/adapter",
        "post /v1/chat/completions",
        "get /v1/models",
        "get /metrics",
        "get /health",
    } <= names
    assert ok(client.get("/health")) == {"status": "ok"}


def test_metrics_count_and_name_nobody(client):
    add(client, "zoe", [CHOICE])
    client.get("/v1/people/zoe/nothing")
    text = client.get("/metrics").text
    line = 'fsa_requests_total{route="/v1/people/{name}/answers",status="201"} 1.0'
    assert line in text and 'fsa_requests_total{route="none",status="404"} 1.0' in text
    assert "zoe" not in text


HALF = json.loads('"\\ud800"')
ANSWERS = "/v1/people/ann/answers"
RANK, QUESTION = "/v1/people/ann/rank", "/v1/people/ann/question"
MALFORMED = [
    *(("/v1/people", body) for body in ["", "{", "[]", "null", "7", '"ann"', "{}"]),
    *(
        ("/v1/people", {"name": name})
        for name in ["", " ann", "a/b", "a\nb", "a" * 101, 7, None, [], {}, "nobody"]
    ),
    ("/v1/people", {"name": "ann", "more": 1}),
    ("/v1/people", {"name": "a\u0000"}),
    ("/v1/people", {"name": "../ann"}),
    ("/v1/people", b"\xff\xfe"),
    ("/v1/people", "[" * 10_000),
    ("/v1/people", {"name": HALF}),
    *(
        (ANSWERS, body)
        for body in [
            "{",
            {},
            {"chosen": A[0]},
            {"rejected": A[0]},
            {"chosen": A[0], "rejected": A[0]},
            {"chosen": A[0], "rejected": A[1][:2]},
            {"chosen": A[0], "rejected": []},
            {"chosen": A[0], "rejected": None},
            {"chosen": A[0], "rejected": "tea"},
            {"chosen": A[0], "rejected": [1, 2, "x"]},
            {"chosen": A[0], "rejected": [1, 2, True]},
            {"chosen": A[0], "rejected": {"x": 1}},
            {"chosen": A[0], "rejected": [[1, 2, 3]]},
            '{"chosen": [1, 2, NaN], "rejected": [1, 2, 3]}',
            '{"chosen": [1, 2, Infinity], "rejected": [1, 2, 3]}',
            '{"chosen": [1, 2, 1e400], "rejected": [1, 2, 3]}',
            {"chosen": [1, 2, 1e39], "rejected": A[0]},
            {**CHOICE, "liked": A[2]},
            {**CHOICE, "tie": "perhaps"},
            {**CHOICE, "prompt": 7},
            {**CHOICE, "prompt": [{"role": "user"}]},
            {**CHOICE, "prompt": [{"role": "user", "content": 7}]},
            {**CHOICE, "id": ""},
            {**CHOICE, "id": "a b"},
            {**CHOICE, "id": "a" * 101},
            {**CHOICE, "id": 7},
            {**CHOICE, "weight": 2},
            {**CHOICE, "chosen": HALF},
            {"liked": "tea"},
            {"liked": HALF},
            {"disliked": []},
            {"item": A[0]},
            {"item": A[0], "value": 3},
            {"item": A[0], "value": "much"},
            {"item": A[0], "value": None},
            '{"item": [1, 2, 3], "value": NaN}',
            {"value": 4},
            "7" * 5000,
        ]
    ),
    *(
        (path, body)
        for path in (RANK, QUESTION)
        for body in [
            {},
            {"options": []},
            {"options": [A[0]]},
            {"options": "tea"},
            {"options": [A[0], "tea"]},
            {"options": [A[0], A[1][:1]]},
            {"options": [A[0], None]},
            {"options": [A[0]] * 201},
            {"options": A, "seed": -1},
            {"options": A, "seed": 2**31},
            {"options": A, "seed": 1.5},
            {"options": A, "prompt": ["one"]},
            {"options": A, "prompt": []},
            {"options": A, "prompt": HALF},
            {"options": A, "more": 1},
            '{"options": [[1, 2, NaN], [1, 2, 3]]}',
        ]
    ),
    (QUESTION, {"options": A, "leave_out": [[0]]}),
    (QUESTION, {"options": A, "leave_out": [["a", 1]]}),
    (QUESTION, {"options": A, "random": "perhaps"}),
    ("/v1/chat/completions", {}),
    ("/v1/chat/completions", {"model": "ann", "messages": []}),
    ("/v1/people/ann/answers", "x" * 30_000),
    ("/v1/people/nobody/answers", CHOICE),
    ("/v1/people/bob/answers", CHOICE),
    ("/v1/people/ann/nothing", {}),
    ("/v1/people/%00/answers", CHOICE),
    ("/v1/people/..%2Fann/answers", CHOICE),
]


def test_malformed_requests_get_one_line(client):
    assert len(MALFORMED) >= 60
    add(client, "ann", [CHOICE])
    before = ok(client.get("/v1/people/ann"))
    for path, body in MALFORMED:
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        response = client.post(path, content=text, headers=headers)
        assert 400 <= response.status_code < 500, (path, str(body)[:80], response.text)
        line = line_of(response, response.status_code)
        assert "Traceback" not in line
    for method, path in (("PUT", "/v1/people"), ("DELETE", "/v1/people/ann/answers")):
        line_of(client.request(method, path), 405)
    line_of(client.delete("/v1/people/ann/answers/none"), 404)
    line_of(client.get("/v1/people/ann/adapter"), 400)
    assert ok(client.get("/v1/people/ann")) == before
    assert ok(client.get("/v1/people"))["people"] == ["ann"]


def test_limits(ranker, tmp_path):
    limits = dict(answers=2, options=3, body=500)
    service = served.make_service(tmp_path, PersonModel(ranker), **limits)
    client = served.client_of(service)
    add(client, "ann", TOLD[:2])
    line = line_of(client.post("/v1/people/ann/answers", json=TOLD[2]), 409)
    assert "2 answers" in line
    line = line_of(client.post("/v1/people/ann/rank", json={"options": A[:4]}), 400)
    assert "give 3 at most" in line
    line_of(client.post("/v1/people", json={"name": "b" * 600}), 413)


def test_the_same_answer_sent_twice_counts_once(client):
    add(client, "ann", [{**CHOICE, "id": "first"}])
    before = z_of(client, "ann")
    answer = {**CHOICE, "id": "first"}
    assert ok(client.post("/v1/people/ann/answers", json=answer)) == {"id": "first"}
    assert z_of(client, "ann") == before
    other = {**CHOICE, "id": "first", "tie": True}
    line_of(client.post("/v1/people/ann/answers", json=other), 409)
