"""A share and very many clients: does anybody wait long, does anything leak, is bulk shared fairly?

`python -m bench.crowd --help`. Four things one after the other, on one share in a process of its own, over loopback:
clients at once that list and read; connections that do nothing; clients that come and go, as many as in hours of use;
and bulk clients side by side. Both ends share this machine, so latencies say how they grow, not how good they are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from bench import session
from headrace.bench import report
from headrace.bench.process import BenchError
from headrace.bench.workspace import place, workspace
from headrace.protocol.codes import Code
from headrace.protocol.messages import CHUNK_SIZE, GetChunk, List, ListPart, Message, Ping, Read, Stat, StatReply
from headrace.protocol.session import ClientHandshake
from headrace.transport.framed import MessageStream
from headrace.transport.tcp import TcpStream, client_context, tune

CODE: Final = Code.parse("h3ad-race-7e57")
PATIENCE: Final = 60.0  # seconds for any one answer
FOLDERS, FILES, SIZE = 20, 25, 20_000
BULK: Final = 16 * CHUNK_SIZE
READ: Final = 16 * 1024
FAIR: Final = 0.2  # of the mean that a bulk client may be away from it
CLIENTS_OF_ONE_PAIRING: Final = 50  # connections; a share takes no more than 64 of one peer

Credential = tuple[bytes, bytes]


class Client:
    """One connection that got in. A context manager. address: the one of this machine that it comes from."""

    def __init__(self, port: int, credential: Credential | None = None, address: str = "127.0.0.1") -> None:
        """credential: of an earlier pairing; None pairs. Raises HeadraceError, OSError."""
        sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(address, 0))
        tune(sock, loopback=True)
        self.stream = TcpStream(sock, client_context(), server=False, timeout=PATIENCE)
        self.stream.handshake(PATIENCE)
        self.messages = MessageStream(self.stream)
        known = {} if credential is None else {"peer": credential[0], "credential": credential[1]}
        code = CODE if credential is None else None
        handshake = ClientHandshake(fingerprint=self.stream.fingerprint, entropy=os.urandom, code=code, **known)  # type: ignore[arg-type]
        self.messages.send_all(handshake.start())
        while handshake.agreed is None:
            self.messages.send_all(handshake.receive(self.messages.expect()[0]))
        self.messages.enter_session()
        keys = handshake.agreed.keys
        self.credential: Credential = credential or (keys.peer, keys.credential)  # type: ignore[union-attr]

    def ask(self, request: Message) -> tuple[Message, memoryview]:
        """The last message of the answer, with its payload."""
        self.messages.send(request)
        while True:
            message, length = self.messages.expect()
            payload = memoryview(bytearray(length))
            self.messages.read_payload(payload)
            if not isinstance(message, ListPart) or message.last:
                return message, payload

    def use(self, rng: random.Random) -> None:
        """Lists a directory, or reads a piece of a file of which it knows every byte."""
        folder = rng.randrange(FOLDERS)
        if rng.randrange(2):
            answer, _ = self.ask(List(1, b"%d" % folder))
            if not isinstance(answer, ListPart):
                raise BenchError(f"a listing was answered with {answer}")
            return
        number, offset = rng.randrange(FILES), rng.randrange(SIZE - READ)
        answer, data = self.ask(Read(1, b"%d/%d" % (folder, number), offset, READ))
        if data != content(folder, number)[offset : offset + READ]:
            raise BenchError(f"wrong bytes of {folder}/{number} at {offset}: {answer}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()


def content(folder: int, number: int) -> bytes:
    return bytes((folder * 31 + number * 7 + at) % 251 for at in range(251)) * (SIZE // 251 + 1)


def make_tree(root: Path) -> Path:
    for folder in range(FOLDERS):
        (root / str(folder)).mkdir(parents=True)
        for number in range(FILES):
            (root / str(folder) / str(number)).write_bytes(content(folder, number)[:SIZE])
    (root / "bulk").write_bytes(os.urandom(CHUNK_SIZE) * (BULK // CHUNK_SIZE))
    return root


@dataclass(frozen=True, slots=True)
class Weight:
    """What a process has of what could leak. rss: bytes."""

    descriptors: int
    threads: int
    rss: int

    @classmethod
    def of(cls, pid: int) -> Self:
        statm = Path(f"/proc/{pid}/statm").read_text().split()
        return cls(
            len(os.listdir(f"/proc/{pid}/fd")),
            len(os.listdir(f"/proc/{pid}/task")),
            int(statm[1]) * resource.getpagesize(),
        )

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.threads} threads, {self.rss / 2**20:.1f} MiB"


@dataclass
class Latencies:
    """Of single requests, in seconds. Thread-safe."""

    all: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, seconds: Sequence[float]) -> None:
        with self.lock:
            self.all += seconds

    def at(self, share: float) -> float:
        ordered = sorted(self.all)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def __str__(self) -> str:
        figures = ", ".join(f"p{share * 100:g} {self.at(share) * 1000:.1f} ms" for share in (0.5, 0.99))
        return f"{len(self.all)} requests, {figures}, longest {max(self.all) * 1000:.0f} ms"


def together(count: int, work: Callable[[int], None]) -> None:
    """`work` with each number on a thread of its own. Raises what the first of them raised."""
    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            work(number)
        except BaseException as why:  # noqa: BLE001  # carried to whoever waits
            failures.append(why)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def settled(pid: int, before: Weight, seconds: float = 20.0) -> Weight:
    """What the process has once it has no more descriptors and threads than before; after so many seconds, whatever it
    has."""
    ends = time.monotonic() + seconds
    while True:
        now = Weight.of(pid)
        if (now.descriptors <= before.descriptors and now.threads <= before.threads) or time.monotonic() > ends:
            return now
        time.sleep(0.05)


# ---- the four ------------------------------------------------------------------------------------------------------


def crowd(port: int, clients: int, requests: int) -> Latencies:
    """So many clients at once, each a peer of its own, each asks so often."""
    latencies, gate = Latencies(), threading.Barrier(clients)

    def one(number: int) -> None:
        rng, took = random.Random(number), []
        try:
            client = Client(port)
        except BaseException:
            gate.abort()
            raise
        with client:
            gate.wait(PATIENCE * 4)
            for _ in range(requests):
                began = time.perf_counter()
                client.use(rng)
                took.append(time.perf_counter() - began)
        latencies.note(took)

    together(clients, one)
    return latencies


@contextlib.contextmanager
def idle(port: int, connections: int) -> Iterator[None]:
    """So many connections that got in and do nothing."""
    with contextlib.ExitStack() as stack:
        credential: Credential | None = None
        for number in range(connections):
            if number % CLIENTS_OF_ONE_PAIRING == 0:
                credential = None
            address = f"127.0.0.{2 + number // 200}"
            credential = stack.enter_context(Client(port, credential, address)).credential
        yield


def churn(port: int, visits: int, workers: int, look: Callable[[int], None]) -> Latencies:
    """So many connections, one after the other for each worker: come, list, read, go. look: called now and then."""
    latencies, left, lock = Latencies(), [visits], threading.Lock()
    with Client(port) as first:
        credential = first.credential

    def one(number: int) -> None:
        rng, took = random.Random(number), []
        while True:
            with lock:
                left[0] -= 1
                done = visits - left[0]
            if done > visits:
                break
            began = time.perf_counter()
            with Client(port, credential) as client:
                client.use(rng)
                client.use(rng)
            took.append(time.perf_counter() - began)
            if done % max(1, visits // 6) == 0:
                look(done)
        latencies.note(took)

    together(workers, one)
    return latencies


def take_bulk(port: int, seconds: float, ready: Callable[[], None]) -> int:
    """Bytes that came in so many seconds, one chunk after the other, with the next one asked for already."""
    with Client(port) as client:
        answer, _ = client.ask(Stat(1, b"bulk"))
        if not isinstance(answer, StatReply):
            raise BenchError(f"no bulk: {answer}")
        chunk = GetChunk(1, b"bulk", answer.entry.version, 0, CHUNK_SIZE)
        buffer, count = memoryview(bytearray(CHUNK_SIZE)), 0
        ready()
        ends = time.monotonic() + seconds
        client.messages.send_all([chunk, chunk])
        while time.monotonic() < ends:
            length = client.messages.expect()[1]
            client.messages.read_payload(buffer[:length])
            count += length
            client.messages.send(chunk)
        return count


def fairness(port: int, clients: int, seconds: float) -> list[int]:
    """Bytes of each of so many bulk clients, each a process of its own, in the same so many seconds."""
    command = [sys.executable, "-m", "bench.crowd", "--bulk", str(port), "--seconds", str(seconds)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
    ]
    try:
        for child in children:
            assert child.stdout
            child.stdout.readline()
        for child in children:
            assert child.stdin
            child.stdin.write("go\n")
            child.stdin.flush()
        return [int(child.communicate(timeout=seconds + PATIENCE)[0]) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


# ---- by hand -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def shared(folder: Path, tree: Path) -> Iterator[tuple[int, int]]:
    """A share in a process of its own: (pid, port)."""
    limits = ("--max-connections", "3000", "--max-per-address", "3000", "--max-handshakes-per-address", "400")
    where = ("--json", "--port", "0", "--bind", "127.0.0.1", "--transport", "tcp", "--no-discovery", "-q")
    environment = {**os.environ, "HEADRACE_HOME": str(folder / "home"), "HEADRACE_CODE": CODE.text}
    command = [sys.executable, "-m", "headrace", "share", str(tree), *where, *limits, "--max-handshakes", "400"]
    with open(folder / "share.log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    try:
        assert process.stdout
        ready = process.stdout.readline()
        port = int(ready.split('"port": ' if '"port": ' in ready else '"port":')[1].split(",")[0])
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(20)


def run(options: argparse.Namespace) -> None:
    report.tell(report.machine_line(report.machine()))
    with workspace(4 * BULK, options.folder) as folder:
        tree = make_tree(folder / "tree")
        with shared(folder, tree) as (pid, port):
            crowd(port, 20, 20)  # whatever is loaded late is loaded now, and what is opened late is open:
            fairness(port, 1, 1.0)  # the store of hashes
            before = settled(pid, Weight(30, 8, 0), 3)
            report.tell(f"at rest: {before}")
            report.tell(f"{options.clients} clients at once: {crowd(port, options.clients, options.requests)}")
            report.tell(f"  afterwards: {settled(pid, before)}")
            with idle(port, options.idle), Client(port, address="127.0.0.99") as one:
                took = Latencies()
                for _ in range(500):
                    began = time.perf_counter()
                    one.ask(Ping(1))
                    took.note([time.perf_counter() - began])
                report.tell(f"{options.idle} idle connections: {Weight.of(pid)}; a ping beside them: {took}")
            report.tell(f"  afterwards: {settled(pid, before)}")

            def look(done: int) -> None:
                report.tell(f"  {done} visits: {Weight.of(pid)}")

            took = churn(port, options.visits, 8, look)
            report.tell(f"{options.visits} visits, 8 at a time: {took}")
            report.tell(f"  afterwards: {settled(pid, before)}")
            shares = fairness(port, options.bulk_clients, options.seconds)
            mean = sum(shares) / len(shares)
            away = max(abs(share - mean) for share in shares) / mean
            figures = ", ".join(f"{share / options.seconds / 1e6:.0f}" for share in shares)
            report.tell(f"{len(shares)} bulk clients: {figures} MB/s; at most {away:.0%} from the mean")
            report.tell(f"  afterwards: {settled(pid, before)}")
            if away > FAIR:
                raise BenchError(f"bulk is not shared fairly: {away:.0%} from the mean, {FAIR:.0%} is the most")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench crowd", description=__doc__)
    parser.add_argument("--clients", type=session.positive, default=200, help="at once (default %(default)s)")
    parser.add_argument("--requests", type=session.positive, default=50, help="of each (default %(default)s)")
    parser.add_argument("--idle", type=session.positive, default=1000, help="connections (default %(default)s)")
    parser.add_argument("--visits", type=session.positive, default=7200, help="as of two hours, one a second")
    parser.add_argument("--bulk-clients", type=session.positive, default=4, help="(default %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of bulk (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=place(), help="where to work (default %(default)s)")
    parser.add_argument("--bulk", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bulk:

        def ready() -> None:
            print("ready", flush=True)
            sys.stdin.readline()

        print(take_bulk(options.bulk, options.seconds, ready))
        return 0
    return session.exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
