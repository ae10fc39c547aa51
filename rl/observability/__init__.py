"""Outputs of a run: directory, metrics, trajectories, progress and report."""
