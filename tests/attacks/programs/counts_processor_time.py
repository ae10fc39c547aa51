# ends: any
import os
import resource

print("tried", resource.getrlimit(resource.RLIMIT_CPU), flush=True)
for _ in range(8):
    if os.fork() == 0:
        while True:
            pass
