import os

from attack import attempt, given, read

attempt("chroot", lambda: os.chroot("/tmp"))
attempt("up and up", lambda: read("../" * 40 + given["readable_file"]))
attempt("a descriptor of another process", lambda: os.listdir("/proc/1/fd"))
attempt("a handle", lambda: os.open("/proc/1/root", os.O_PATH | os.O_DIRECTORY) and os.listdir("/proc/1/root"))
print("tried")
