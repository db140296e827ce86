"""What watches a run while it trains: metrics, progress, rates, profiles, hangs."""
