import os

from attack import attempt, read

for path in (
    "kcore",
    "kmsg",
    "kallsyms",
    "sched_debug",
    "sysrq-trigger",
    "keys",
    "cmdline",
    "interrupts",
    "sys/kernel/osrelease",
):
    attempt(path, lambda path=path: read(f"/proc/{path}"))
for path in ("/sys/kernel", "/sys/fs/cgroup", "/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs"):
    attempt(path, lambda path=path: os.listdir(path))
seen = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
print("ESCAPED: processes of others" if len(seen) > 3 else "tried", seen)
