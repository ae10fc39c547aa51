from attack import attempt, call, syscall

numbers = {"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "keyctl": 250, "add_key": 248}
numbers |= {"init_module": 175, "finit_module": 313, "kexec_load": 246, "swapoff": 168, "acct": 163, "syslog": 103}
numbers |= {"open_by_handle_at": 304, "fanotify_init": 300, "settimeofday": 164, "clock_settime": 227, "iopl": 172}
numbers |= {"sethostname": 170, "quotactl": 179, "delete_module": 176, "modify_ldt": 154, "request_key": 249}
for name, number in numbers.items():
    attempt(name, lambda number=number: syscall(number, 1, 0, 0, 0, 0))
attempt("reboot", lambda: call("reboot", 0x89ABCDEF))  # disables a key combination, which is harmless
print("tried")
