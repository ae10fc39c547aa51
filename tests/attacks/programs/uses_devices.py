import os
import stat

from attack import attempt, read

for name in ("mem", "kmem", "port", "kmsg", "vda", "sda", "nvme0n1", "fuse", "kvm", "loop-control", "net/tun", "tty0"):
    attempt(name, lambda name=name: read(f"/dev/{name}"))
attempt("a device of its own", lambda: os.mknod("turnwise_attack", 0o600 | stat.S_IFBLK, os.makedev(254, 0)))
attempt("a character device", lambda: os.mknod("turnwise_attack2", 0o600 | stat.S_IFCHR, os.makedev(1, 1)))
print("tried")
