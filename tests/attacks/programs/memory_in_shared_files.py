import os

size = 0
try:
    for i in range(24):
        with open(f"/dev/shm/turnwise_attack_{i}", "wb") as file:
            size += file.write(bytes(8 << 20))
except OSError:
    pass
print("ESCAPED: shared memory" if size > 100 << 20 else "tried", os.path.exists("/dev/shm"))
