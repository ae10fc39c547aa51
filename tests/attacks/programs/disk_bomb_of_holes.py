import signal

from attack import attempt

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open("turnwise_attack", "wb") as file:
    attempt("a file of a terabyte", lambda: file.truncate(1 << 40))
print("tried")
