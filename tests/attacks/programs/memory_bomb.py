blocks = []
try:
    for _ in range(64):
        blocks.append(bytearray(16 << 20))
except MemoryError:
    pass
print("ESCAPED: memory" if len(blocks) >= 16 else "tried")
