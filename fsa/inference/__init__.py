"""Use of trained models: `Predictor` for reward models, `Steerer` for policies."""
