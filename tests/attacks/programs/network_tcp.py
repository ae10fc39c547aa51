import socket

from attack import attempt, given

attempt("a listener of the host", lambda: socket.create_connection(("127.0.0.1", given["tcp_port"]), 1).recv(10))
print("tried")
