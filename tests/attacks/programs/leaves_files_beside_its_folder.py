import contextlib
import os

for folder in ("..", "../..", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run", "/box", "/proc", "/"):
    with contextlib.suppress(OSError):
        os.mkdir(f"{folder}/turnwise_attack_folder")
    with contextlib.suppress(OSError), open(f"{folder}/turnwise_attack_big", "wb") as file:
        file.write(bytes(32 << 20))
for name in ("work", "tmp", "shm"):
    with contextlib.suppress(OSError):
        os.setxattr(f"../{name}", "user.turnwise_attack", b"x")
    with contextlib.suppress(OSError):
        os.chmod(f"../{name}", 0o1777)
os.umask(0)
print("tried")
