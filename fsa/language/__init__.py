"""Language models: transformer, tokens, generation, scoring, Hugging Face folders."""
