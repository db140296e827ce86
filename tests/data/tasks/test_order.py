"""Which users are visited."""

import numpy as np
import pytest

from fsa.data.tasks.order import spread


@pytest.mark.parametrize("count, most", [(10, 3), (100, 99), (200_000, 50_000)])
def test_users_are_spread_evenly(count, most):
    users = np.arange(count, dtype=np.int32) + 7
    found = spread(users, most)
    assert len(found) == most and found[0] == 7
    assert np.isin(found, users).all()
    gaps = np.diff(found)
    assert gaps.min() >= 1 and np.ptp(gaps) <= 1


def test_fewer_users_are_all_taken():
    users = np.array([3, 5, 8], np.int32)
    for most in (3, 4, 10**9):
        np.testing.assert_array_equal(spread(users, most), users)
