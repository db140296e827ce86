"""Tasks: what draws episodes from simulated users or from a dataset."""
