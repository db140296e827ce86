"""From a config to a run: the fields of a config, and a run of each kind."""
