# ends: any
import os
import signal

print("tried", flush=True)
os.kill(-1, signal.SIGKILL)
os.kill(0, signal.SIGKILL)
