"""Starts the programs of `fsa.commands`: `python -m launch.train`."""
