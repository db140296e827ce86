"""Sweeps: many runs of one experiment, here or in SLURM, and their summary."""
