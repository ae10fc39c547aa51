import threading
import time

num_threads = 0
try:
    while num_threads < 1000:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        num_threads += 1
except RuntimeError:
    pass
print("ESCAPED: threads" if num_threads >= 100 else "tried")
