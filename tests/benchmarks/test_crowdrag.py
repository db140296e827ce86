"""The groups of people by their taste for lists."""

from benchmarks.crowdrag import with_tastes

LIST, PROSE, HALF = "- tea\n- rye", "Tea.\nRye.", "- tea\nRye."


def test_a_taste_is_what_is_chosen_more_than_rejected():
    choices = {
        "ann": [(LIST, PROSE), (HALF, HALF)],
        "bob": [(PROSE, LIST), (PROSE, HALF), (LIST, HALF)],
        "eve": [(LIST, HALF), (HALF, LIST)],
    }
    rows = [
        {"user": user, "chosen": chosen, "rejected": rejected}
        for user, own in choices.items()
        for chosen, rejected in own
    ]
    found = with_tastes(rows)
    assert [{k: v for k, v in row.items() if k != "group"} for row in found] == rows
    groups = {row["user"]: row["group"] for row in found}
    assert groups == {"ann": "list", "bob": "prose", "eve": "either"}
