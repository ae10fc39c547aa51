# ends: time limit
import contextlib
import signal

for number in set(range(1, signal.NSIG)) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
    with contextlib.suppress(OSError):
        signal.signal(number, signal.SIG_IGN)
while True:
    pass
