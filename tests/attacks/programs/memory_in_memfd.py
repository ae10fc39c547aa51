import os

descriptors, size = [], 0
try:
    for _ in range(24):
        descriptors.append(os.memfd_create("turnwise_attack"))
        size += os.write(descriptors[-1], bytes(8 << 20))
except OSError:
    pass
print("ESCAPED: memory of descriptors" if size > 160 << 20 else "tried")
