"""The metrics port: what it says, and what it does with those who misuse it."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.errors import UsageError
from headrace.observe.exporter import MAX_CLIENTS, MetricsServer, parse_address
from headrace.observe.metrics import FAMILIES, OTHER, Counts, Latencies, Sample


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with MetricsServer("127.0.0.1:0") as made:
        yield made


def scrape(server: MetricsServer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Values by name and labels."""
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_samples_of_all_sources_are_served_and_add_up(server):
    server.add(lambda: [Sample("peers", 2), Sample("bytes", 10, ("sent", "tcp"))])
    server.add(lambda: [Sample("bytes", 5, ("sent", "tcp"))])
    found = scrape(server)

    assert found["headrace_peers", ()] == 2
    assert found["headrace_bytes_total", (("direction", "sent"), ("transport", "tcp"))] == 15
    assert "process_resident_memory_bytes" in {name for name, _ in found}


def test_a_label_that_is_on_no_list_is_other(server):
    server.add(lambda: [Sample("io_fallbacks", 3, ("../../etc/passwd",))])

    assert scrape(server)["headrace_io_fallbacks_total", (("reason", OTHER),)] == 3


def test_a_counter_never_goes_back(server):
    values = iter([7, 5, 8])
    server.add(lambda: [Sample("wrong_codes", next(values))])

    assert [scrape(server)["headrace_wrong_codes_total", ()] for _ in range(3)] == [7, 7, 8]


def test_a_source_that_fails_does_not_silence_the_others(server, caplog):
    def fail() -> list[Sample]:
        raise RuntimeError("a bug")

    server.add(fail)
    server.add(lambda: [Sample("peers", 1)])

    assert scrape(server)["headrace_peers", ()] == 1
    assert "could not be read" in caplog.text


def test_latencies_become_a_histogram(server):
    latencies, bounds = Latencies((0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)), ("0.01", "0.1", "+Inf")
    for seconds in (0.006, 0.01, 0.05, 3.0):
        latencies.observe(seconds)
    before = scrape(server)  # what other tests of this process observed
    server.add(lambda: [Sample("first_byte_seconds", latencies.figures())])
    server.add(lambda: [Sample("first_byte_seconds", latencies.figures())])  # of two sources: both together
    found = scrape(server)

    more = {key: found[key] - before[key] for key in found if key[0].startswith("headrace_first_byte_seconds")}
    assert [more["headrace_first_byte_seconds_bucket", (("le", le),)] for le in bounds] == [4, 6, 8]
    assert more["headrace_first_byte_seconds_count", ()] == 8
    assert more["headrace_first_byte_seconds_sum", ()] == pytest.approx(2 * 3.066)


def test_latencies_time_a_block_unless_it_fails():
    clock = iter([1.0, 1.5, 2.0]).__next__
    latencies = Latencies((1.0,), clock)
    with latencies.timing():  # nobody wants to know
        pass
    latencies.wanted = True
    with latencies.timing():
        pass
    with pytest.raises(OSError), latencies.timing():
        raise OSError

    assert latencies.figures().total == 0.5


def test_a_port_in_use_is_a_usage_error_that_names_it(server):
    with pytest.raises(UsageError, match=r"port \d+ for metrics is in use"):
        MetricsServer(server.address)


@pytest.mark.parametrize("where", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x", "1:²"])
def test_what_is_no_address_is_a_usage_error(where):
    with pytest.raises(UsageError, match="no address for metrics"):
        parse_address(where)


@pytest.mark.parametrize(
    ("where", "address"),
    [("127.0.0.1:9107", ("127.0.0.1", 9107)), ("[::1]:1", ("::1", 1)), (":9107", ("127.0.0.1", 9107))],
)
def test_addresses(where, address):
    assert parse_address(where) == address


def test_clients_that_say_nothing_do_not_pile_up(server):
    host, port = parse_address(server.address)
    silent = [socket.create_connection((host, port), timeout=5) for _ in range(MAX_CLIENTS)]
    try:
        with socket.create_connection((host, port), timeout=5) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for sock in silent:
            sock.close()


def test_counts_say_whether_a_word_is_new():
    counts = Counts()
    assert [counts.add("a"), counts.add("a"), counts.add("b")] == [True, False, True]
    assert (counts.counts(), counts.total()) == ({"a": 2, "b": 1}, 3)


def test_names_keep_to_the_conventions_of_prometheus():
    for family in FAMILIES:
        assert family.name == family.name.lower() and not family.name.endswith(("_total", "_count", "_sum"))
        assert family.help.endswith(".")
        if family.kind == "histogram":
            assert family.name.endswith("_seconds")
        assert not {"le", "quantile", "instance", "job"} & set(family.labels)
