"""Many runs of one experiment: jobs, SLURM arrays, and a table of what they found."""
