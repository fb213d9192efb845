"""What a run leaves and shows: its folder, checkpoints, metrics, traces, and what its machine can do."""
