import mmap

maps = []
try:
    for _ in range(64):
        maps.append(mmap.mmap(-1, 16 << 20))
except (OSError, MemoryError):
    pass
print("ESCAPED: memory" if len(maps) >= 16 else "tried")
