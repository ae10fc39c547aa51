from attack import attempt, write

paths = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sysrq-trigger",
    "/proc/sys/vm/drop_caches",
)
for path in (*paths, "/proc/1/oom_score_adj", "/sys/power/state", "/proc/self/uid_map"):
    attempt(path, lambda path=path: write(path, b"1"))
print("tried")
