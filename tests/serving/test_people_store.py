"""People's answers are kept, found and removed, and z belongs to what it is of."""

import concurrent.futures
import sqlite3
import stat
import threading

import numpy as np
import pytest

from fsa.errors import InputError
from fsa.serving.people import KeptAnswer, PeopleStore, Refused, Unknown, digest_of
from fsa.serving.person_model import Latent

TEA = {"prompt": "What?", "chosen": "tea", "rejected": "rum"}
MILK = {"liked": "milk"}


@pytest.fixture
def store(tmp_path):
    opened = PeopleStore(tmp_path / "people.sqlite")
    yield opened
    opened.close()


def test_answers_are_kept_in_their_order(store, tmp_path):
    store.add("ann")
    first = store.add_answer("ann", TEA, most=5)
    store.add_answer("ann", MILK, "m", most=5)
    kept = [KeptAnswer(first, TEA), KeptAnswer("m", MILK)]
    assert store.answers("ann") == kept
    assert PeopleStore(tmp_path / "people.sqlite").answers("ann") == kept
    assert store.remove_answer("ann", first) and not store.remove_answer("ann", first)
    assert store.answers("ann") == kept[1:]


def test_people_do_not_share_answers(store):
    for name in ("ann", "bob"):
        store.add(name)
    store.add_answer("ann", TEA, "1", most=5)
    store.add_answer("bob", MILK, "1", most=5)
    assert not store.remove_answer("bob", "2")
    assert [each.answer for each in store.answers("ann")] == [TEA]
    store.remove("ann")
    assert [each.answer for each in store.answers("bob")] == [MILK]
    assert store.names() == ["bob"] and "ann" not in store
    store.add("ann")
    assert store.answers("ann") == []


def test_the_same_answer_with_the_same_id_counts_once(store):
    store.add("ann")
    for _ in range(2):
        assert store.add_answer("ann", TEA, "1", most=5) == "1"
    assert len(store.answers("ann")) == 1
    with pytest.raises(Refused, match="another answer's"):
        store.add_answer("ann", MILK, "1", most=5)


def test_no_more_answers_than_the_limit(store):
    store.add("ann")
    store.add_answer("ann", TEA, "1", most=1)
    with pytest.raises(Refused, match="remove some"):
        store.add_answer("ann", MILK, most=1)
    assert store.add_answer("ann", TEA, "1", most=1) == "1"


def test_a_name_is_given_once(store):
    store.add("ann")
    with pytest.raises(Refused, match="is there already"):
        store.add("ann")
    assert store.names() == ["ann"]


def test_unknown_people(store):
    for call in (
        lambda: store.answers("ann"),
        lambda: store.add_answer("ann", TEA, most=5),
        lambda: store.remove_answer("ann", "1"),
        lambda: store.remove("ann"),
        lambda: store.set_token("ann", "secret"),
    ):
        with pytest.raises(Unknown):
            call()


def test_tokens_are_kept_as_digests(store, tmp_path):
    store.add("ann", "secret-of-ann")
    assert store.owner_of("secret-of-ann") == "ann"
    store.set_token("ann", "another")
    assert store.owner_of("secret-of-ann") is None
    assert store.owner_of("another") == "ann"
    store.close()
    assert b"another" not in (tmp_path / "people.sqlite").read_bytes()


def test_z_is_found_by_the_digest_of_what_it_is_of(store):
    store.add("ann")
    z = Latent(np.float32([0.1, -2]), np.float32([1, 0.3]))
    of = digest_of("run", [TEA, MILK])
    store.keep_latent("ann", of, z)
    found = store.kept_latent("ann", digest_of("run", [MILK, TEA]))
    assert [x.tobytes() for x in found] == [x.tobytes() for x in z]
    for other in (digest_of("other run", [TEA, MILK]), digest_of("run", [TEA])):
        assert store.kept_latent("ann", other) is None


def test_only_the_owner_may_read_the_file(store, tmp_path):
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("These are no tables at all, just some text.\n" * 9)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE something (x)")
    other.close()
    for name in ("text", "other", "no/folder"):
        with pytest.raises(InputError, match="name another"):
            PeopleStore(tmp_path / name)
    assert (tmp_path / "text").read_text().startswith("These are")


def test_many_threads_share_few_connections(store, monkeypatch):
    """Threads of a server come and go; each leaves its connection to the next."""
    made, connect = [], store._connect
    monkeypatch.setattr(store, "_connect", lambda: made.append(1) or connect())
    store.add("ann")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: store.add_answer("ann", TEA, most=99), range(40)))
    for _ in range(20):
        thread = threading.Thread(target=store.answers, args=("ann",))
        thread.start()
        thread.join()
    assert {each.id for each in store.answers("ann")} == set(ids) and len(ids) == 40
    assert len(made) <= 4
