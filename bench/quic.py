"""QUIC on loopback: aiopquic by itself, and headrace's streams on top of it. Host and client are two processes.

    .venv/bin/python -m bench.quic [--size 400m] [--rounds 5]

The rows take turns. MB are 10^6 bytes. CPU seconds are both processes', for each 10^9 bytes.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from headrace.errors import ConnectionLostError
from headrace.transport.identity import Identity
from headrace.transport.quic import binding, endpoint
from headrace.transport.quic.client import QuicConnection
from headrace.transport.quic.known import Known
from headrace.transport.quic.lanes import MIB
from headrace.transport.quic.link import CERTIFICATE_STREAM
from headrace.transport.quic.listener import QuicListener
from headrace.transport.quic.stream import QuicStream

BLOCK: Final = 64 * 1024
ROWS: Final = ("aiopquic", "streams")


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# ---- hosts -----------------------------------------------------------------------------------------------------------


def host(row: str, home: Path, port: int) -> None:
    """Sends as many bytes on each stream as its first bytes say. Ends when its standard input does."""
    identity = Identity.load_or_create(home)
    if row == "streams":
        listener = QuicListener(
            port=port,
            bind="",
            identity=identity,
            on_stream=lambda stream, address: threading.Thread(target=_send, args=(stream,), daemon=True).start(),
        )
        print("ready", flush=True)
        sys.stdin.read()
        listener.stop()
    else:
        context = _context(is_client=False, port=port, cert_file=str(identity.file), key_file=str(identity.file))
        print("ready", flush=True)
        _send_by_hand(context)
        context.stop()
    print(cpu(), flush=True)


def _send(stream: QuicStream) -> None:
    chunk, word = memoryview(os.urandom(MIB)), memoryview(bytearray(32))
    try:
        left = int(bytes(word[: stream.recv_into(word)]))
        while left:
            stream.send(chunk[: min(left, MIB)])
            left -= min(left, MIB)
        stream.recv_into(word)
    except ConnectionLostError:
        pass
    stream.close()


def _context(**more: Any) -> Any:
    context = binding.load().context()
    context.start(
        alpn=endpoint.ALPN,
        congestion_control_algorithm="bbr1",
        rx_data_ring_cap=4 * MIB,
        initial_max_data=32 * MIB,
        initial_max_streams_bidi=32,
        initial_max_streams_uni=1,
        socket_buffer_size=endpoint.SOCKET_BUFFER,
        **more,
    )
    return context


def _send_by_hand(context: Any) -> None:
    block = bytes(BLOCK)
    left: dict[int, int] = {}
    states: dict[int, tuple[int, int]] = {}
    while not select.select([sys.stdin], [], [], 0)[0]:
        select.select([context.eventfd], [], [], 0.0005 if left else 0.05)
        for kind, number, data, _, _, connection, state, _ in context.drain_rx():
            if kind == binding.STREAM_DATA and number not in left and data:
                left[number], states[number] = int(bytes(data)), (connection, state)
        context.release_batch()
        for number in list(left):
            connection, state = states[number]
            while left[number] > 0:
                last = left[number] <= BLOCK
                if context.tx_send_atomic(number, block, last, connection, state, 4 * MIB) != binding.SENT:
                    break
                left[number] -= BLOCK
            if left[number] <= 0:
                del left[number]


# ---- clients ---------------------------------------------------------------------------------------------------------


def by_streams(home: Path, port: int, pin: bytes, count: int, size: int) -> float:
    connection = QuicConnection(("127.0.0.1", port), pin=pin, certificates=home / "certificates")
    word = str(size // count).encode()

    def fetch() -> None:
        stream = connection.open_stream(bulk=True)
        stream.send(word)
        buffer, left = memoryview(bytearray(MIB)), size // count
        while left:
            left -= stream.recv_into(buffer[:left])
        stream.close()

    threads = [threading.Thread(target=fetch) for _ in range(count)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    connection.close()
    return seconds


def by_hand(home: Path, port: int, pin: bytes, count: int, size: int) -> float:
    native = binding.load()
    context = _context(is_client=True, ca_file=str(Known(home / "certificates").find(pin)))
    context.create_client_connection("127.0.0.1", port, sni=endpoint.NAME, alpn=endpoint.ALPN)
    got, started, connection = 0, 0.0, 0
    while got < size // count * count:
        select.select([context.eventfd], [], [], 5)
        for kind, number, data, _, _, which, _, _ in context.drain_rx():
            if kind == binding.READY and which:
                started, connection = time.perf_counter(), which
                for index in range(count):
                    word = str(size // count).encode()
                    context.tx_send_atomic(4 * index, word, False, which, native.stream_ctx_create(), MIB)
            elif kind in (binding.STREAM_DATA, binding.STREAM_FIN) and data and number != CERTIFICATE_STREAM:
                got += len(data)
            elif kind in (binding.CLOSE, binding.APP_CLOSE):
                raise SystemExit("the host hung up")
        context.release_batch()
    seconds = time.perf_counter() - started
    context.push_tx_event(binding.TX_CLOSE, 0, cnx_ptr=connection)
    context.wake_up()
    time.sleep(0.05)
    context.stop()
    return seconds


def measure(row: str, home: Path, count: int, size: int) -> tuple[float, float]:
    """MB a second, and CPU seconds of both processes for a GB."""
    port = 20_000 + os.getpid() % 20_000
    command = [sys.executable, "-m", "bench.quic", "--host", row, "--home", str(home), "--port", str(port)]
    pin = Identity.load_or_create(home).fingerprint
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        before = cpu()
        run = by_streams if row == "streams" else by_hand
        seconds = run(home, port, pin, count, size)
        used = cpu() - before
        process.stdin.close()
        used += float(process.stdout.readline())
    return size / seconds / 1e6, used / (size / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=lambda text: int(text.removesuffix("m")) * MIB, default=400 * MIB)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--host", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host:
        host(options.host, options.home, options.port)
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        measure("streams", home, 1, MIB)  # keeps the certificate
        rows = [(row, count) for row in ROWS for count in (1, 2)]
        seen: dict[tuple[str, int], list[tuple[float, float]]] = {row: [] for row in rows}
        for _ in range(options.rounds):
            for row, count in rows:
                seen[row, count].append(measure(row, home, count, options.size))
    for (row, count), results in seen.items():
        rates = sorted(rate for rate, _ in results)
        spent = statistics.median(used for _, used in results)
        print(
            f"{row:10} {count} stream{'s' if count > 1 else ' '}  median {statistics.median(rates):4.0f} MB/s "
            f"({rates[0]:.0f} to {rates[-1]:.0f}), {spent:.1f} CPU s/GB"
        )


if __name__ == "__main__":
    main()
