"""How a training begins and ends, whatever it trains."""

import pytest

from fsa.errors import InputError
from fsa.recipes import train as recipe
from fsa.training import loop, run_directory
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


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_one_process_says_that_it_has_trained(
    tiny, tmp_path, monkeypatch, capsys, first
):
    monkeypatch.setattr(recipe.processes, "is_first", lambda: first)
    monkeypatch.setattr("fsa.recipes.run.is_first", lambda: first)
    recipe.train(tiny(), tmp_path)
    assert (str(tmp_path) in capsys.readouterr().out) == first


@pytest.mark.slow
def test_a_run_without_a_checkpoint_takes_another_config(
    tiny, tmp_path, monkeypatch, capsys
):
    """One that has saved does not."""

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "train", stopped)
        recipe.train(tiny(seed=1), tmp_path)
    recipe.train(tiny(seed=2), tmp_path)
    assert run_directory.read_config(tmp_path)["seed"] == 2
    with pytest.raises(InputError, match="seed: 2 -> 3"):
        recipe.train(tiny(seed=3), tmp_path)


class Scores(dict):
    """Checkpoints of which the scores alone are known: step -> score."""

    score = dict.get

    @property
    def best_step(self):
        return min(self, key=self.get)


def test_a_best_step_that_is_not_the_last_comes_with_its_reason():
    rose = recipe._best(Scores({250: 0.72, 1000: 0.7928}), 1000)
    assert "250" in rose and "0.7200" in rose and "0.7928" in rose
    fell = recipe._best(Scores({250: 0.72, 1000: 0.6}), 1000)
    assert "1000" in fell and "0.72" not in fell
