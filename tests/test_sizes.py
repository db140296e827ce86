"""Padded sizes hold what they are for, and are few."""

from fsa.sizes import padded


def test_a_size_holds_the_count_and_is_less_than_twice_as_large():
    for count in range(1, 200):
        assert count <= padded(count) < 2 * count


def test_sizes_are_few():
    assert len({padded(count) for count in range(1, 1025)}) == 11
    assert {padded(count, 16) for count in range(17)} == {16}
    assert padded(3, 20) == 32
