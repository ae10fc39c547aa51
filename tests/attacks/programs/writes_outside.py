import os
import sys

from attack import attempt, given, write

for folder in ("/", "/usr", "/etc", "/bin", "/dev", "/proc", "/var", "/box", sys.prefix, sys.base_prefix):
    attempt(folder, lambda folder=folder: write(os.path.join(folder, "turnwise_attack")))
attempt("a folder that all users may write to", lambda: write(os.path.join(given["open_folder"], "turnwise_attack")))
print("tried")
