import contextlib
import os

for folder in (".", "/tmp", "/dev/shm", "/var/tmp"):
    open(os.path.join(folder, "turnwise_attack"), "w").close()
with contextlib.suppress(OSError):
    os.setxattr(".", "user.turnwise_attack", b"x")
os.mkdir("closed", 0)
print("tried")
