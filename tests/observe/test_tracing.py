"""Spans: what is below what, what goes where, and nothing while it is off."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from headrace.errors import LocalDiskError
from headrace.observe import tracing
from headrace.observe.times import StreamTimes
from headrace.observe.trace_export import FileExporter, wants_otlp
from headrace.observe.tracing import Span, Tracer

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # the example of W3C Trace Context


class Kept:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.closed = False

    def export(self, span: Span) -> None:
        self.spans.append(span)

    def close(self) -> None:
        self.closed = True

    def named(self, name: str) -> Span:
        (found,) = (span for span in self.spans if span.name == name)
        return found


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_a_span_is_below_the_one_that_it_is_in(kept):
    with tracing.tracing(Tracer([kept])):
        with tracing.span("outer", files=3):
            with tracing.span("inner"):
                pass
        with tracing.span("apart"):
            pass

    outer, inner, apart = kept.named("outer"), kept.named("inner"), kept.named("apart")
    assert (outer.parent, outer.attributes) == ("", {"files": 3})
    assert (inner.parent, inner.context.trace_id) == (outer.context.span_id, outer.context.trace_id)
    assert apart.context.trace_id != outer.context.trace_id
    assert outer.began <= inner.began <= inner.ended <= outer.ended
    assert kept.closed


def test_with_a_root_the_spans_of_all_threads_are_in_one_trace(kept):
    def work() -> None:
        with tracing.span("elsewhere"):
            pass

    with tracing.tracing(Tracer([kept]), "get"):
        thread = threading.Thread(target=work, name="worker")
        thread.start()
        thread.join()

    assert kept.named("elsewhere").parent == kept.named("get").context.span_id
    assert kept.named("elsewhere").thread == "worker"


def test_an_error_is_told_by_its_kind_and_never_by_its_text(kept):
    with tracing.tracing(Tracer([kept])), pytest.raises(OSError), tracing.span("connect"):
        raise OSError("the code is 7k2m-xq4c-9dht")

    assert kept.named("connect").error == "OSError"
    assert "7k2m" not in repr(kept.spans)


def test_the_other_side_goes_on_with_the_same_trace(kept):
    with tracing.tracing(Tracer([kept])), tracing.span("handshake"):
        sent = tracing.traceparent()
    there = Kept()
    with tracing.tracing(Tracer([there])), tracing.under(sent), tracing.span("session"):
        pass

    assert there.named("session").parent == kept.named("handshake").context.span_id
    assert there.named("session").context.trace_id == kept.named("handshake").context.trace_id


@pytest.mark.parametrize(
    ("sent", "trace_id"),
    [
        (TRACEPARENT, "0af7651916cd43dd8448eb211c80319c"),
        (TRACEPARENT[:-1] + "0", None),  # not sampled
        (TRACEPARENT[:-2] + "03", "0af7651916cd43dd8448eb211c80319c"),  # with a flag of level 2
        ("", None),
        (TRACEPARENT + "0", None),
        (TRACEPARENT + "\n", None),
        (TRACEPARENT.upper(), None),
        ("ff" + TRACEPARENT[2:], None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", None),
        ("7k2m-xq4c-9dht", None),
    ],
)
def test_only_a_known_form_is_taken_from_a_peer(sent, trace_id):
    found = tracing.parse(sent)
    assert (found.trace_id if found else None) == trace_id


def test_of_what_happens_often_the_first_and_some_have_a_span(kept):
    with tracing.tracing(Tracer([kept])):
        for _ in range(tracing.ALL_OF + 3 * tracing.EVERY):
            with tracing.sampled("fetch"):
                pass

    assert len(kept.spans) == tracing.ALL_OF + 3


def test_stages_of_a_stream_become_spans_as_long_as_they_lasted(kept):
    now = 0.0
    times = StreamTimes(lambda: now)
    with times.disk:
        now += 1  # before the span
    with tracing.tracing(Tracer([kept])), tracing.sampled("fetch", times):
        for _ in range(2):
            with times.receiving:
                now += 0.5
            with times.hash:
                now += 0.25
            with times.disk:
                now += 2
    fetch = kept.named("fetch").context.span_id

    assert {span.name: span.ended - span.began for span in kept.spans if span.parent == fetch} == {
        "verify": 500_000_000,
        "write": 4_000_000_000,
        "receive": 1_000_000_000,
    }


def test_nothing_is_made_while_it_is_off():
    assert tracing.span("a") is tracing.span("b", files=1) is tracing.sampled("c") is tracing.under(TRACEPARENT)
    assert tracing.serving(TRACEPARENT, StreamTimes()) is tracing.span("a")
    assert tracing.traceparent() == ""


def test_a_decorated_function_is_a_span_and_stays_what_it_is(kept):
    @tracing.traced("plan")
    def plan(files: int) -> int:
        """Counts."""
        return files + 1

    assert plan(1) == 2
    with tracing.tracing(Tracer([kept])):
        assert plan(files=2) == 3
    assert [span.name for span in kept.spans] == ["plan"]
    assert plan.__doc__ == "Counts."


def test_a_file_gets_one_object_a_line_and_keeps_what_was_there(tmp_path: Path):
    file = tmp_path / "trace"
    for name in ("first", "second"):
        with tracing.tracing(Tracer([FileExporter(file, "headrace get")]), name, files=2):
            pass
    first, second = map(json.loads, file.read_text().splitlines())

    assert (first["name"], second["name"]) == ("first", "second")
    assert first["service"] == "headrace get"
    assert first["attributes"] == {"files": 2}
    assert first["duration_ns"] >= 0
    assert len(bytes.fromhex(first["trace_id"])) == 16 and len(bytes.fromhex(first["span_id"])) == 8


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path: Path):
    with pytest.raises(LocalDiskError, match="nowhere"):
        FileExporter(tmp_path / "nowhere" / "trace", "headrace get")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_full_ends_the_trace_and_nothing_else(caplog):
    with tracing.tracing(Tracer([FileExporter(Path("/dev/full"), "headrace get")])):
        for _ in range(2):
            with tracing.span("connect"):
                pass

    assert sum("no further spans" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_a_collector_is_what_the_standard_variables_name(environment, wanted):
    assert wants_otlp(environment) is wanted
