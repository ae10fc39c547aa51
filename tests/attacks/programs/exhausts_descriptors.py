import os

descriptors = []
try:
    while len(descriptors) < 5000:
        descriptors.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
print("ESCAPED: descriptors" if len(descriptors) >= 5000 else "tried")
