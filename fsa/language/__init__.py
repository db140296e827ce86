"""Language models: the decoder, tokens, generation and scoring, Hugging Face folders."""
