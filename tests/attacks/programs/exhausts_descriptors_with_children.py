import os
import time

for _ in range(20):
    try:
        if os.fork() == 0:
            try:
                while True:
                    os.pipe()
            except OSError:
                time.sleep(0.3)
            os._exit(0)
    except OSError:
        break
time.sleep(0.2)
print("tried")
