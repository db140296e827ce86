"""Samples answers through a serving engine, and goes on where it was interrupted.

The answers to each prompt are kept in a file beside the result as soon as they are
there: its first line has the settings, each other line a prompt and its answers.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fsa import bars
from fsa.data import files
from fsa.errors import InputError
from fsa.language.engine import Engine


def partial_file(out: str | os.PathLike) -> pathlib.Path:
    """Returns the file beside `out` that keeps what was sampled so far."""
    return pathlib.Path(f"{os.fspath(out)}.partial")


def sample_answers(
    engine: Engine,
    prompts: Mapping[str, str],
    num_samples: int,
    partial: pathlib.Path,
    *,
    at_once: int = 8,
    progress: bool = False,
    **options: Any,
) -> list[dict[str, str]]:
    """Samples several answers to each prompt through an engine.

    Args:
      engine: the engine.
      prompts: prompt -> split, as `fsa.data.sources.prompts.read_prompts` returns them.
      num_samples: the number of answers to a prompt.
      partial: the file that keeps what was sampled. If it is there, the prompts in it
        are not sampled again. The caller removes it when the result is saved.
      at_once: the number of prompts that are sent to the engine together.
      progress: whether to show a bar.
      **options: of `Engine.request`, such as `max_new_tokens`.

    Returns:
      A row for each answer, with `prompt`, `answer` and `split`, in the order of the
      prompts.

    Raises:
      InputError: as `Engine.sample`, and if the file cannot be written or was begun
        with other settings.
    """
    settings = engine.request("", num_samples, **options)
    done = _read(partial, settings)
    asked = [prompt for prompt in prompts if prompt not in done]
    begun = len(prompts) - len(asked)
    bar = bars.Bar(len(prompts), "Sampling", "prompt", done=begun, shown=progress)
    with bar, _continued(partial, settings, done) as write:

        def keep(i: int, answers: list[str]) -> None:
            write(asked[i], answers)
            done[asked[i]] = answers
            bar.advance()

        engine.sample(asked, num_samples, on_answers=keep, at_once=at_once, **options)
    return [
        {"prompt": prompt, "answer": answer, "split": split}
        for prompt, split in prompts.items()
        for answer in done[prompt]
    ]


def _read(partial: pathlib.Path, settings: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the answers of each prompt in the file; none if it is not there.

    Raises:
      InputError: if it was begun with other settings.
    """
    if not partial.exists():
        return {}
    lines = partial.read_text().splitlines()
    with contextlib.suppress(ValueError):
        if lines and json.loads(lines[0]) == settings:
            return dict(_whole(lines[1:]))
    raise InputError(
        f"{partial}: was begun with other settings; give them again, or remove it"
    )


def _whole(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields the prompt and the answers of each line that was written to its end."""
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            yield row["prompt"], row["answers"]


@contextlib.contextmanager
def _continued(
    partial: pathlib.Path, settings: dict[str, Any], done: Mapping[str, list[str]]
) -> Iterator[Callable[[str, list[str]], None]]:
    """Yields a function that adds the answers of a prompt to the file.

    Raises:
      InputError: if it cannot be written.
    """
    rows = [settings, *({"prompt": p, "answers": a} for p, a in done.items())]
    # Written anew, since its last line may have been cut off.
    files.write_jsonl(partial, rows)
    with partial.open("a") as file:

        def write(prompt: str, answers: list[str]) -> None:
            row = {"prompt": prompt, "answers": answers}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        yield write
