"""Tasks, which draw episodes from simulated users or from a dataset."""
