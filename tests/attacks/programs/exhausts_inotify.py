from attack import libc

instances = [libc.inotify_init1(0) for _ in range(250)]
watches = [libc.inotify_add_watch(instances[0], b"/usr/lib", 1 << i) for i in range(12)]
print("ESCAPED: inotify" if min(instances) >= 0 else "tried", len(watches))
