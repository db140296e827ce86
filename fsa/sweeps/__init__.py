"""Sweeps: many runs of one experiment, on this machine or in SLURM, and summaries."""
