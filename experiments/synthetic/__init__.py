"""Simulated users, for whom the Bayes-optimal prediction is known."""
