"""Builds runs from configs: the fields of a config, and one module for each kind."""
