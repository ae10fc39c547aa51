import contextlib
import os

from attack import given

# If a link replaced a folder, emptying or reading it would reach the host's files.
for folder in (os.environ["TMPDIR"], os.path.join(os.environ["TMPDIR"], "..", "shm"), os.getcwd()):
    for name in ("turnwise_attack_link", "fetched"):
        with contextlib.suppress(OSError):
            os.symlink(given["precious_folder"], f"{folder}/{name}")
    with contextlib.suppress(OSError):
        os.rename(folder, f"{folder}-moved")
        os.symlink(given["precious_folder"], folder)
print("tried")
