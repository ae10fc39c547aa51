# ends: killed
import contextlib
import os
import socket
import time

for _ in range(24):
    if os.fork() == 0:
        break
pairs = []
with contextlib.suppress(OSError):
    while True:
        left, right = socket.socketpair()
        pairs.append((left, right))
        for end in (left, right):
            end.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    end.send(bytes(32768))
time.sleep(1)
print("ESCAPED: memory of sockets" if len(pairs) > 100 else "tried", flush=True)
os._exit(0)
