# ends: killed
import ctypes
import mmap
import time

# One mapped page of each keeps all of it in memory, and only that page is visible.
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
size, held = 32 << 20, 0
for _ in range(64):
    address = libc.mmap(None, ctypes.c_size_t(size), 3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        break
    ctypes.memset(address, 1, size)
    libc.munmap(ctypes.c_void_p(address + mmap.PAGESIZE), ctypes.c_size_t(size - mmap.PAGESIZE))
    held += size
    time.sleep(0.01)
time.sleep(0.5)
print("ESCAPED: memory" if held >= 1 << 30 else "tried", held >> 20)
