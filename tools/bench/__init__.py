"""`python -m tools.bench`: measures this machine against the project's goals and prints both."""
