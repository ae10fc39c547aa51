"""`python -m rl bench`: measures the goals of the project on this machine and prints them beside what was reached."""
