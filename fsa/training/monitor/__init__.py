"""Reports and checks of a run while it trains: metrics, progress, finite losses."""
