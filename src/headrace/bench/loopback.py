"""How fast one Python process can hand a file to another over TCP, with no protocol, no encryption, no checks.

    python loopback.py serve FOLDER ADDRESS           prints its port; sends the file whose name a client says
    python loopback.py get ADDRESS PORT NAME DEST     receives it

The file is preallocated and received in large pieces, as headrace does it: what is left is the kernel's work.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

PIECE = 1 << 20
SIZE = struct.Struct("!Q")


def serve(folder: str, address: str) -> None:
    with socket.create_server((address, 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                name = lines.readline().decode().strip()
                if name:
                    send(connection, os.path.join(folder, name))


def send(connection: socket.socket, path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        connection.sendall(SIZE.pack(size))
        position = 0
        while position < size:
            position += os.sendfile(connection.fileno(), file, position, size - position)
    finally:
        os.close(file)


def get(address: str, port: str, name: str, destination: str) -> None:
    with socket.create_connection((address, int(port))) as connection:
        connection.sendall(f"{name}\n".encode())
        size: int = SIZE.unpack(connection.recv(SIZE.size, socket.MSG_WAITALL))[0]
        file = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        if size:
            os.posix_fallocate(file, 0, size)
        piece = memoryview(bytearray(PIECE))
        while size:
            count = connection.recv_into(piece)
            if not count:
                sys.exit("the server hung up")
            os.write(file, piece[:count])
            size -= count
        os.close(file)


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1] == "serve" else get(*sys.argv[2:])
