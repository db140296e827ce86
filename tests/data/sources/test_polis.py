"""Polis votes: published exports, and the tables of choices derived from them."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from fsa.data import files, splits, tables
from fsa.data.sources import polis, polis_files
from fsa.errors import InputError

SEED = 20240607

COMMENTS = """timestamp,comment-id,author-id,agrees,disagrees,moderated,comment-body
0,3,1,0,0,-1,The moderators removed this
0,4,1,0,0,0,"  Nobody looked
at  this "
0,0,1,0,0,1,Taxes should rise
0,1,1,0,0,1,too few
0,2,1,0,0,1,Taxes  should rise
"""
VOTES = """participant,group-id,n-votes,0,1,2,3,4
7,0,3,1,-1,-1,-1,0
5,,2,,,1,1,
2,1,1,-1,,,,
"""


@pytest.fixture
def export(tmp_path):
    """An export in which every way to be left out occurs."""
    folder = tmp_path / "town.hall"
    folder.mkdir()
    (folder / "comments.csv").write_text(COMMENTS)
    (folder / "participants-votes.csv").write_text(VOTES)
    (folder / "summary.csv").write_text('topic,"Town, hall"\nurl,https://pol.is/x\n')
    return folder


def test_an_export_is_read(export):
    conversation, report = polis_files.read(export, seed=SEED)
    assert (conversation.name, conversation.prompt) == ("town.hall", "Town, hall")
    assert conversation.statements.tolist() == [0, 4]
    assert conversation.texts == ("Taxes should rise", "Nobody looked at this")
    # Participant 5 voted on nothing that is kept.
    assert conversation.participants.tolist() == [7, 2]
    assert conversation.votes.tolist() == [[1, 0], [-1, polis.UNSEEN]]
    assert report.rows == 3
    assert report.notes == {
        "statements left out: removed by the moderators": 1,
        "statements left out: under 8 characters": 1,
        "statements left out: copy of an earlier one": 1,
        "participants left out: no vote on a statement that is kept": 1,
        "statements": 2,
        "votes": 3,
    }


def test_every_vote_is_a_rating_and_a_pass_is_between(export):
    conversation, _ = polis_files.read(export, seed=SEED, name="town", prompt="Well?")
    rows = list(polis.ratings(conversation))
    assert [(row.user, row.item_id, row.value) for row in rows] == [
        ("town/7", "town/0", 1.0),
        ("town/7", "town/4", 0.0),
        ("town/2", "town/0", -1.0),
    ]
    assert {(row.prompt, row.group) for row in rows} == {("Well?", "town")}
    assert polis.DISAGREE < polis.PASS < polis.AGREE


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("comments.csv", "moderated", "state", "comments.csv: .*'moderated'"),
        ("comments.csv", "0,1,1,0", "0,x,1,0", "comments.csv, row 6: "),
        ("participants-votes.csv", ",4\n", ",9\n", "votes.csv: .*'4'"),
        ("participants-votes.csv", "-1,0\n", "-1,2\n", "votes.csv, row 2: '2'"),
        ("participants-votes.csv", "\n2,", "\nx,", "votes.csv, row 4: .*'x'"),
    ],
)
def test_faults_of_an_export(export, name, old, new, message):
    content = (export / name).read_text()
    assert content.count(old) == 1
    (export / name).write_text(content.replace(old, new))
    with pytest.raises(InputError, match=message):
        polis_files.read(export, seed=SEED)


def test_neither_form(tmp_path):
    with pytest.raises(InputError, match="votes.csv"):
        polis_files.read(tmp_path / "votes.csv", seed=SEED)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="a.npz"):
        polis_files.read(tmp_path / "a.npz", seed=SEED)
    with pytest.raises(InputError, match="comments.csv"):
        polis_files.read(tmp_path, seed=SEED)


@pytest.fixture(scope="module")
def town():
    """100 participants who voted on most of 150 statements of all popularities."""
    rng = np.random.default_rng(0)
    agree = rng.random((100, 150)) < np.linspace(0.1, 0.9, 150)
    votes = np.where(agree, polis.AGREE, polis.DISAGREE)
    votes[rng.random(votes.shape) < 0.1] = polis.PASS
    votes[rng.random(votes.shape) < 0.2] = polis.UNSEEN
    votes[0, 20:] = polis.UNSEEN
    return polis.Conversation(
        name="town",
        prompt="Well?",
        statements=np.arange(150),
        texts=tuple(f"statement {s}" for s in range(150)),
        participants=np.arange(100) * 3,
        votes=votes.astype(np.int8),
        split=rng.choice(3, 100, p=[0.7, 0.1, 0.2]).astype(np.int8),
    )


def by_user(rows):
    users = collections.defaultdict(list)
    for row in rows:
        users[row.user].append([int(i[5:]) for i in (row.chosen_id, row.rejected_id)])
    return {int(user[5:]) // 3: np.array(pairs) for user, pairs in users.items()}


@pytest.mark.parametrize("table", polis.TABLES)
def test_chosen_was_agreed_with_and_no_statement_occurs_twice(town, table):
    users = by_user(polis.TABLES[table](town, SEED))
    fewest = {"random": 20, "contested": 15}[table]
    assert 0 not in users
    assert len(users) > 50
    for p, pairs in users.items():
        assert (town.votes[p, pairs] == [polis.AGREE, polis.DISAGREE]).all()
        assert len(np.unique(pairs)) == pairs.size
        assert fewest <= len(pairs) <= 40


def test_contested_pairs_are_about_equally_popular(town):
    popular = polis.popularity(town)
    train = town.votes[town.split == 0]
    assert popular[3] == pytest.approx(
        np.log(((train[:, 3] == 1).sum() + 1) / ((train[:, 3] == -1).sum() + 1))
    )
    gaps = {
        table: np.concatenate(
            [popular[pairs] for pairs in by_user(make(town, SEED)).values()]
        )
        for table, make in polis.TABLES.items()
    }
    contested = gaps["contested"] @ [1, -1]
    assert np.abs(contested).max() <= polis.MAX_GAP
    # The more popular of the two is chosen hardly more often than by a coin.
    assert 0.45 < (contested > 0).mean() < 0.6 < ((gaps["random"] @ [1, -1]) > 0).mean()


def test_contested_pairs_are_made_without_looking_at_the_votes(town):
    users = by_user(polis.contested_choices(town, SEED))
    # Someone whose votes do not count towards popularity.
    p = next(p for p in users if town.split[p] != 0)
    votes = town.votes.copy()
    votes[p] = np.where(np.abs(votes[p]) == 1, -votes[p], votes[p])
    reversed_votes = dataclasses.replace(town, votes=votes)
    again = by_user(polis.contested_choices(reversed_votes, SEED))
    np.testing.assert_array_equal(again[p], users[p][:, ::-1])


@pytest.fixture(
    params=[
        "bowling-green",
        "vtaiwan-uberx",
        "austria-energy",
        "austria-production",
        "nz-biodiversity",
        "canada-electoral-reform",
        "nz-affordable-housing",
        "nz-taxes",
        "bowling-green-2050",
    ]
)
def published(request, shared_data):
    """A conversation in compact form, and its language."""
    folder = shared_data / "polis"
    listed = json.loads((folder / "conversations.json").read_text())
    (entry,) = (e for e in listed if e["conversation"] == request.param)
    conversation, _ = polis_files.read(
        folder / "votes" / f"{request.param}.npz", seed=SEED
    )
    assert conversation.prompt == entry["prompt"]
    return conversation, entry["language"]


@pytest.mark.parametrize("table", polis.TABLES)
def test_the_published_tables_are_rebuilt_exactly(published, shared_data, table):
    conversation, language = published
    path = shared_data / "polis" / f"{table}_{language}.jsonl.gz"
    made = [
        {
            "conversation": row.group,
            **{k: v for k, v in tables.columns_of(row).items() if k != "group"},
        }
        for row in polis.TABLES[table](conversation, SEED)
    ]
    assert made == [
        row
        for _, row in files.read_rows(path)
        if row["conversation"] == conversation.name
    ]


def test_the_published_votes_come_from_the_raw_export(shared_data):
    folder = shared_data / "polis"
    compact, _ = polis_files.read(folder / "votes" / "nz-taxes.npz", seed=0)
    raw, _ = polis_files.read(
        folder / "raw" / "scoop-hivemind.taxes", seed=SEED, name="nz-taxes"
    )
    assert raw.texts == compact.texts
    for field in ("statements", "participants", "votes"):
        np.testing.assert_array_equal(getattr(raw, field), getattr(compact, field))


def test_participants_who_join_an_export_move_nobody(export):
    def found():
        read, _ = polis_files.read(export, seed=SEED, name="town")
        users = map(read.user, range(len(read.participants)))
        return dict(zip(users, read.split.tolist(), strict=True))

    before = found()
    assert before == {u: splits.SPLITS.index(splits.of(u, SEED)) for u in before}
    with (export / "participants-votes.csv").open("a") as file:
        file.writelines(f"{i},,1,1,,,,\n" for i in range(10, 40))
    after = found()
    assert len(after) == len(before) + 30
    assert {user: after[user] for user in before} == before
