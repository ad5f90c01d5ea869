"""Messages that write: what is out of bounds is refused before anybody acts on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol import messages as m

from .strategies import MESSAGES


@given(data=st.data())
def test_a_request_to_write_is_checked_before_it_is_looked_at(data: st.DataObject) -> None:
    """check_put refuses with ValueError, and nothing else, whatever decodes; what it lets through keeps the limits."""
    kinds: list[type[m.Message]] = list(m.PUTS)
    cls = data.draw(st.sampled_from(kinds))
    message = data.draw(MESSAGES[cls])
    try:
        m.check_put(message)  # type: ignore[arg-type]
    except ValueError:
        return
    assert len(message.transfer) == m.TRANSFER_SIZE  # type: ignore[attr-defined]
    if isinstance(message, (m.PutNames, m.PutAttributes, m.PutFiles)):
        assert 0 < len(message.paths) == len(message.entries) <= m.MAX_PUT_ITEMS
    if isinstance(message, m.PutOffer):
        assert 0 < len(message.hashes) <= m.MAX_OFFER * m.HASH_SIZE and message.first >= 0
    if isinstance(message, m.PutOpen):
        assert message.entry.kind == "f" and len(message.entry.version) == m.VERSION_SIZE


@pytest.mark.parametrize(
    "message",
    [
        m.PutBegin(1, b"short"),
        m.PutNames(1, bytes(16), [], []),
        m.PutNames(1, bytes(16), [b"a", b"b"], [m.Entry(b"", "d")]),
        m.PutNames(1, bytes(16), [b"a"] * 257, [m.Entry(b"", "d")] * 257),
        m.PutFiles(1, bytes(16), [b"a"], [m.Entry(b"", "f", -1, version=bytes(16))], bytes(32)),
        m.PutFiles(1, bytes(16), [b"a"], [m.Entry(b"", "f", 1)], bytes(32)),
        m.PutFiles(1, bytes(16), [b"a"], [m.Entry(b"", "f", 1, version=bytes(16))], b"no hash"),
        m.PutOpen(1, bytes(16), b"a", m.Entry(b"", "d")),
        m.PutOpen(1, bytes(16), b"a", m.Entry(b"", "f", 1 << 63, version=bytes(16))),
        m.PutOffer(1, bytes(16), b"a", bytes(16), 0, b""),
        m.PutOffer(1, bytes(16), b"a", bytes(16), 0, bytes(33)),
        m.PutOffer(1, bytes(16), b"a", bytes(16), 0, bytes(32 * 65)),
        m.PutOffer(1, bytes(16), b"a", bytes(16), -1, bytes(32)),
        m.PutChunk(1, bytes(16), b"a", b"", 0, bytes(32)),
        m.PutCommit(1, bytes(16), b"a", bytes(15)),
    ],
)
def test_what_no_client_may_ask(message: m.AnyPut) -> None:
    with pytest.raises(ValueError):
        m.check_put(message)
