"""Many small files in one exchange: asked for, checked, and told apart again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from headrace.engine.buffers import Buffers
from headrace.engine.lane import Lane
from headrace.engine.queue import Group, Job
from headrace.engine.unpack import check_part
from headrace.errors import HeadraceError, ProtocolError, from_wire
from headrace.observe.metrics import VERIFY_FAILURES
from headrace.protocol.messages import NOT_PACKED, ZSTD_PACKED, Batch, Error, GetBatch
from headrace.storage.chunks import hash_bytes

Received = tuple[Job, memoryview | HeadraceError]

_NOTHING: Final = memoryview(b"")


def request(lane: Lane, group: Group) -> None:
    """Posts the request for the group's files; those that are empty are not asked for."""
    lane.post(GetBatch(lane.next_id(), [(bytes(job.source), job.entry.version) for job in group.asked], lane.zstd))


def receive(lane: Lane, group: Group, buffers: Buffers) -> Iterator[list[Received] | list[Job]]:
    """The answer, part by part: each job with its bytes, or with why there are none. The bytes lie in a buffer that is
    somebody else's with the next step, so go to the end.

    A part that does not match its hash is given as the bare jobs in it. Raises ConnectionLostError; ProtocolError, and
    what the host may say of a request as a whole: from_wire errors, after which the lane stays usable.
    """
    jobs = group.asked
    position = 0
    while position < len(jobs):
        answer, payload = lane.part()
        if isinstance(answer, Error):
            lane.answered()
            raise from_wire(answer.code, answer.message)
        if not isinstance(answer, Batch):
            raise ProtocolError("the host answered a request for a batch with something else")
        size = sum(answer.sizes)
        check_part(answer.packed, payload, size, asked=lane.zstd != NOT_PACKED)
        errors = _checked(answer, jobs, position)
        part = jobs[position : position + len(answer.sizes)]
        position += len(part)
        if position == len(jobs):
            lane.answered()
        lane.counters.arrived(payload, size, answer.packed)
        if not payload:
            yield _told_apart(part, answer, errors, _NOTHING)
            continue
        with buffers.acquire(size) as view:
            if answer.packed == ZSTD_PACKED:
                lane.unpacker.receive(lane.messages, payload, view)
            else:
                lane.messages.read_payload(view)
            with lane.times.hash:
                right = hash_bytes(view) == answer.hash
            if not right:
                VERIFY_FAILURES.add()
                yield part
            else:
                yield _told_apart(part, answer, errors, view)


def _checked(answer: Batch, jobs: list[Job], position: int) -> dict[int, HeadraceError]:
    """The errors in it, by item. ProtocolError unless it is what was asked for: nothing is allocated before."""
    sizes, failed = answer.sizes, answer.failed
    if answer.first != position or not 0 < len(sizes) <= len(jobs) - position:
        raise ProtocolError("the host sent a batch with other files than it was asked for")
    wanted_sizes = [job.entry.size for job in jobs[position : position + len(sizes)]]
    if not failed and sizes == wanted_sizes and not answer.codes and not answer.texts:
        return {}
    if not len(failed) == len(answer.codes) == len(answer.texts) <= len(sizes):
        raise ProtocolError("the host sent a batch that does not add up")
    errors = {
        number: from_wire(code, text) for number, code, text in zip(failed, answer.codes, answer.texts, strict=True)
    }
    if len(errors) != len(failed):
        raise ProtocolError("the host sent a batch with two errors for one file")
    told = 0
    for number, (size, wanted) in enumerate(zip(sizes, wanted_sizes, strict=True), position):
        told += number in errors
        if size != (0 if number in errors else wanted):
            raise ProtocolError("the host sent a batch with a file of another size than it listed")
    if told != len(errors):
        raise ProtocolError("the host sent a batch with an error for a file that is not in it")
    return errors


def _told_apart(part: list[Job], answer: Batch, errors: dict[int, HeadraceError], view: memoryview) -> list[Received]:
    received: list[Received] = []
    start = 0
    for number, (job, size) in enumerate(zip(part, answer.sizes, strict=True), answer.first):
        received.append((job, errors[number] if number in errors else view[start : start + size]))
        start += size
    return received
