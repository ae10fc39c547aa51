import contextlib
import os

from attack import given

box = os.path.dirname(os.getcwd())
with contextlib.suppress(OSError):
    os.chmod(box, 0o777)
with contextlib.suppress(OSError):
    os.rename(box, f"{box}-turnwise_attack")
    os.symlink(given["precious_folder"], box)
print("tried")
