"""What the screen says before a training begins: what is trained on what, and where."""

import jax
from etils import epath

from fsa.inference.saved_model import LANGUAGE_MODEL, POLICY
from fsa.recipes.config import Config


def opening(config: Config, run_dir: epath.Path, step: int) -> str:
    """Returns a few lines about a run that begins or goes on.

    Args:
      config: a checked config.
      run_dir: the run directory.
      step: number of steps that were made before.
    """
    kind, settings = config["kind"], config["train"]
    examples = "sequences" if kind == LANGUAGE_MODEL else "people"
    rows = [["data", _data(config)]]
    if kind == POLICY:
        rows.append(["model", config["language_model"]["path"]])
    rows += [
        ["steps", f"{settings['steps']:,} of {settings['batch_size']:,} {examples}"],
        ["saved", f"every {settings['validate_every']:,} steps, after validation"],
        ["devices", _devices()],
    ]
    verb = "Resuming" if step else "Training"
    head = f"{verb} a {kind.replace('_', ' ')} in {run_dir}"
    foot = "Ctrl-C saves and ends; the same command resumes."
    return "\n".join([head, _indented(rows), foot])


def _data(config: Config) -> str:
    task = config["task"]
    if "path" in task:
        return task["path"]
    if config["kind"] == LANGUAGE_MODEL:
        return f"{task['sequences']:,} sequences of the small language"
    return f"simulated people ({task['name']})"


def _devices() -> str:
    devices = jax.devices()
    text = f"{len(devices)} x {devices[0].device_kind}"
    many = jax.process_count()
    return f"{text} in {many} processes" if many > 1 else text


def _indented(rows: list[list[str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {value}" for name, value in rows)
