# ends: killed
import os
import time

for _ in range(24):
    if os.fork() == 0:
        block = bytearray(os.urandom(1 << 20)) * 48
        time.sleep(20)
        os._exit(0)
time.sleep(20)
print("ESCAPED: memory")
