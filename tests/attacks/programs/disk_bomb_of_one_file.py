import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = 0
try:
    with open("turnwise_attack", "wb", buffering=0) as file:
        while size < 200 << 20:
            size += file.write(bytes(4 << 20))
except OSError:
    pass
print("ESCAPED: disk" if size > 100 << 20 else "tried")
