"""The training step and its losses, the loop, checkpoints and the run directory."""
