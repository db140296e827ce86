"""What a run reports while it trains, and what it checks."""
