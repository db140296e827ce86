"""Evaluation of models on held-out users: scores, generated texts, tables, plots."""
