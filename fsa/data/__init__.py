"""Data: datasets of choices and ratings, where they come from, and their tasks."""
