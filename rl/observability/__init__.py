"""What a run leaves behind and shows: its directory, metrics, trajectories, progress and report."""
