import os
import time


def live():
    while True:
        if os.fork() == 0:
            os.setsid()
        else:
            os._exit(0)
        time.sleep(0.001)


if os.fork() == 0:
    live()
print("tried")
