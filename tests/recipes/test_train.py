"""How a training begins and ends, whatever it trains."""

import pytest

from fsa.errors import InputError
from fsa.recipes import train as recipe
from fsa.training import loop
from fsa.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def closed(monkeypatch):
    """The checkpoints that were closed."""
    found, close = [], Checkpoints.close

    def note(checkpoints):
        found.append(checkpoints)
        close(checkpoints)

    monkeypatch.setattr(Checkpoints, "close", note)
    return found


@pytest.fixture
def fails(monkeypatch):
    """Makes training end with an error: `fails(error)`."""

    def set_up(error):
        def train(*arguments, **options):
            raise error

        monkeypatch.setattr(loop, "train", train)

    return set_up


@pytest.mark.parametrize("error", [InputError("the loss"), KeyboardInterrupt()])
def test_checkpoints_are_closed_when_training_fails(
    tiny, tmp_path, closed, fails, error
):
    fails(error)
    with pytest.raises(type(error)):
        recipe.train(tiny(), tmp_path)
    assert len(closed) == 1


def test_the_error_that_is_shown_is_the_first_one(tiny, tmp_path, fails, monkeypatch):
    """And not that of closing, which may fail for the same reason."""
    fails(InputError("the loss"))

    def close(checkpoints):
        raise OSError("disk full")

    monkeypatch.setattr(Checkpoints, "close", close)
    with pytest.raises(InputError, match="the loss"):
        recipe.train(tiny(), tmp_path)


@pytest.mark.parametrize("first", [True, False])
def test_one_process_says_that_it_has_trained(
    tiny, tmp_path, monkeypatch, capsys, first
):
    monkeypatch.setattr(recipe.processes, "is_first", lambda: first)
    monkeypatch.setattr("fsa.recipes.run.is_first", lambda: first)
    recipe.train(tiny(), tmp_path)
    assert (str(tmp_path) in capsys.readouterr().out) == first
