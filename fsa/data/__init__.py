"""Datasets of choices and ratings, their sources, and the tasks that draw episodes."""
