import socket

from attack import attempt, given


def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", given["udp_port"]))
        sender.send(b"turnwise_attack")


attempt("a datagram to the host", send)
print("tried")
