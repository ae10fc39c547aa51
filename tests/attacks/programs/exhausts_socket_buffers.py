import array
import socket

pairs, size = [], 0
try:
    while len(pairs) < 200:
        pairs.append(socket.socketpair())
        pairs[-1][0].setblocking(False)
        size += pairs[-1][0].send(bytes(1 << 20))
        pairs[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 200))])
except OSError:
    pass
print("ESCAPED: buffers" if len(pairs) >= 200 else "tried", size)
