"""Settings of experiments, as `benchmarks/people.py` takes them."""

import ast
import importlib.util
from typing import Any


def config_of(setting: str, experiment: str, data: str) -> Any:
    """Returns the config of an experiment file with a setting, on a dataset."""
    spec = importlib.util.spec_from_file_location("experiment", experiment)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    preset, *fields = setting.split(",")
    config = module.get_config(preset)
    config.task.path = data
    for field in fields:
        name, _, value = field.partition("=")
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass  # A word.
        config.update_from_flattened_dict({name: value})
    return config
