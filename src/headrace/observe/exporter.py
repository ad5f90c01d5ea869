"""`--metrics ADDR:PORT`: the figures in Prometheus's text format, over HTTP, read only when somebody asks."""

from __future__ import annotations

import errno
import io
import logging
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import Any, Final, Self, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import make_wsgi_app

from headrace._version import __version__
from headrace.errors import UsageError
from headrace.observe.metrics import (
    BY_NAME,
    PREFIX,
    RANDOM_READ,
    Family,
    Figures,
    Sample,
    Source,
    checked,
    own_samples,
    plus,
)

log = logging.getLogger("headrace.metrics")

MAX_CLIENTS: Final = 8  # at once; further ones are hung up on
PATIENCE: Final = 5.0  # seconds that a client may take for its request


class MetricsServer:
    """Listens from the beginning, and serves what the sources say. A context manager.

    address: where it listens. Sources are asked on the server's threads.
    """

    def __init__(self, where: str) -> None:
        """where: ADDR:PORT; port 0 picks a free one. Raises UsageError: no such address, or the port is in use."""
        host, port = parse_address(where)
        self._sources: list[Source] = [own_samples]
        self._known: dict[tuple[str, tuple[str, ...]], float] = {}
        self._lock = threading.Lock()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as why:
            if why.errno == errno.EADDRINUSE:
                hint = "Choose another with --metrics, or port 0 for a free one."
                raise UsageError(f"port {port} for metrics is in use", hint=hint) from why
            raise UsageError(f"metrics cannot be served on {where} ({why.strerror or why})") from why
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self._serve, name="headrace-metrics", daemon=True)
        self._thread.start()
        RANDOM_READ.wanted = True

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        name = str(host)
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"

    def add(self, source: Source) -> None:
        """From here on its samples are served too."""
        self._sources.append(source)

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client, at each scrape."""
        families: dict[str, Metric] = {"build_info": _family(BY_NAME["build_info"])}
        families["build_info"].add_metric([__version__], 1)  # type: ignore[attr-defined]
        for sample in self._sums():
            family = BY_NAME[sample.name]
            metric = families.get(sample.name)
            if metric is None:
                metric = families[sample.name] = _family(family)
            _add(metric, sample)
        yield from families.values()

    def close(self) -> None:
        """May be called again."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)

    def _sums(self) -> list[Sample]:
        """Those of one family and labels added up, whichever source they come from. A counter never goes back."""
        sums: dict[tuple[str, tuple[str, ...]], float | Figures] = {}
        for source in list(self._sources):
            try:
                for sample in source():
                    sample = checked(sample)
                    key = (sample.name, sample.labels)
                    sums[key] = plus(sums[key], sample.value) if key in sums else sample.value
            except Exception:  # a bug in what is told must not end what it is about; the others are still told
                log.exception("some metrics could not be read")
        with self._lock:
            for key, value in sums.items():
                if BY_NAME[key[0]].kind == "counter" and not isinstance(value, Figures):
                    sums[key] = self._known[key] = max(value, self._known.get(key, 0.0))
        return [Sample(name, value, labels) for (name, labels), value in sums.items()]


def _family(family: Family) -> Metric:
    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    made: Metric = kinds[family.kind](PREFIX + family.name, family.help, labels=list(family.labels))
    return made


def _add(metric: Any, sample: Sample) -> None:
    if isinstance(sample.value, Figures):
        metric.add_metric(list(sample.labels), buckets=sample.value.buckets, sum_value=sample.value.total)
    else:
        metric.add_metric(list(sample.labels), sample.value)


def parse_address(where: str) -> tuple[str, int]:
    """ADDR:PORT, [ADDR]:PORT or :PORT, which is 127.0.0.1. Raises UsageError."""
    host, colon, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f"{where!r} is no address for metrics", hint="Write something like 127.0.0.1:9107.")
    return host or "127.0.0.1", int(port)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64  # with 5, one more that comes at the same moment waits a second
    block_on_close = False  # a client that is slow to read must not hold up the end of a transfer

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Not HTTPServer's: that asks the name service for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no further thread is allowed here
            self._room.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One that hung up, or is no HTTP; nobody could mend it."""
        log.debug("a client of the metrics port was dropped", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *arguments: Any) -> None:
        """Not to standard error."""

    def get_stderr(self) -> TextIO:
        return io.StringIO()
