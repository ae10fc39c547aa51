from attack import attempt, call, syscall

attempt("a file system", lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None))
attempt("the root anew, writable", lambda: call("mount", b"none", b"/", None, 32, None))
attempt("the machine's processes", lambda: call("mount", b"proc", b"/proc", b"proc", 0, None))
attempt("unmount of /proc", lambda: call("umount2", b"/proc", 2))
attempt("unmount of the box", lambda: call("umount2", b"/box/run", 2))
attempt("open_tree", lambda: syscall(428, -100, b"/", 1))
attempt("fsopen", lambda: syscall(430, b"tmpfs", 0))
attempt("mount_setattr", lambda: syscall(442, -100, b"/", 0, b"", 0))
attempt("pivot_root", lambda: syscall(155, b".", b"."))
print("tried")
