"""`python -m tools.bench`: measures the goals of the project and prints them beside what this machine reached."""
