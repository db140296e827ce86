"""Sources of choices and ratings: Polis, UltraFeedback, a small language, its users."""
