import socket

from attack import attempt, given

for address in (given["unix_socket"], "\0" + given["abstract_socket"]):
    attempt(repr(address), lambda address=address: socket.socket(socket.AF_UNIX).connect(address))
print("tried")
