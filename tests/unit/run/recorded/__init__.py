"""What early warnings see of real runs, good ones and runs made bad on purpose; `record.py` says how they were made."""
