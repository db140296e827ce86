"""Trained models in use: `Ranker` for reward models, `Steerer` for policies."""
