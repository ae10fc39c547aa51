// ends: killed
const { spawnSync } = require("child_process");
const code = `
import ctypes, mmap, os, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
pages = 0
for _ in range(16):
    size = 64 << 30
    at = libc.mmap(None, ctypes.c_size_t(size), 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, ctypes.c_long(0))
    if at == ctypes.c_void_p(-1).value: break
    libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), 15)
    for offset in range(0, size, 2 << 20):
        ctypes.c_char.from_address(at + offset).value
        pages += 1
time.sleep(0.5)
print("ESCAPED: page tables" if pages > 1 << 17 else "tried", pages)
`;
const done = spawnSync("python3", ["-c", code]);
console.log(String(done.stdout) || "tried");
