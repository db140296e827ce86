"""Padded sizes hold what they are for, and are few."""

from fsa.sizes import closely_padded, padded


def test_a_size_holds_the_count_and_is_less_than_twice_as_large():
    for count in range(1, 200):
        assert count <= padded(count) < 2 * count
        assert count <= closely_padded(count) <= padded(count)
        assert 2 * closely_padded(count) < 3 * count


def test_sizes_are_few():
    assert len({padded(count) for count in range(1, 1025)}) == 11
    assert {padded(count, 16) for count in range(17)} == {16}
    assert padded(3, 20) == 32
    assert len({closely_padded(count) for count in range(1, 1025)}) == 20
    assert {closely_padded(count, 16) for count in range(17)} == {16}
    assert [closely_padded(count, 16) for count in (17, 24, 25, 48, 49)] == [
        *(24, 24, 32, 48, 64)
    ]
