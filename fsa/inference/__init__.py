"""Trained models in use: `Predictor` for reward models, `Steerer` for policies."""
