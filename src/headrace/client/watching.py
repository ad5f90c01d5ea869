"""Hears from the host what changes, on a lane and a thread of its own, for as long as there is a host."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from headrace.client.link import Link
from headrace.client.looking import can_watch
from headrace.client.session import Session
from headrace.engine.lane import Lane
from headrace.errors import ConnectionLostError, HeadraceError, ProtocolError, from_wire
from headrace.protocol.messages import HEARTBEAT, MAX_CHANGES, Changed, Error, Watch

log = logging.getLogger("headrace.mount")

SILENCE: Final = 3 * HEARTBEAT  # seconds without a word after which the watch is lost
ASKING: Final = 10.0  # seconds that a lane may take
CLOSING: Final = 1.0  # seconds that the end may take; where the host hangs, the thread ends with the link
FIRST_PAUSE: Final = 0.2  # seconds before another attempt; doubles
LONGEST_PAUSE: Final = 30.0


class Watching:
    """One watch on the host, set up again whenever it was lost. Close it.

    number: of the watch that stands; 0: none does. It is another one after each loss.
    """

    def __init__(self, link: Link, on_changed: Callable[[Changed], None], *, silence: float = SILENCE) -> None:
        """on_changed: told on this object's thread; a ProtocolError that it raises ends the watch. silence: seconds."""
        self.number = 0
        self.losses = 0
        self._link = link
        self._on_changed = on_changed
        self._silence = silence
        self._closed = threading.Event()
        self._again = threading.Event()  # the host may be there, and able to watch
        self._lane: Lane | None = None
        self._told = False
        link.on_up(self._again.set)
        self._thread = threading.Thread(target=self._run, name="headrace-watching", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the watch. May be called again."""
        self._closed.set()
        self._again.set()
        lane = self._lane
        if lane:
            lane.messages.abort()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(CLOSING)

    def _run(self) -> None:
        pause = 0.0
        while not self._closed.wait(pause) and not self._link.closed:
            if not self._link.up:  # asking would only have the link try more often
                self._again.wait(LONGEST_PAUSE)
                self._again.clear()
                pause = 0.0
                continue
            began = time.monotonic()
            try:
                able = self._once()
            except HeadraceError as why:
                able = True
                log.info("no word of changes on the host: %s", why.message)
            if not able:
                self._say_once()
                self._again.clear()
                self._again.wait()
            pause = min(max(FIRST_PAUSE, pause * 2), LONGEST_PAUSE) if time.monotonic() - began < ASKING else 0.0

    def _once(self) -> bool:
        """Watches until that ends. False: the host cannot."""
        session, lane = self._link.run(lambda session, _: (session, _open(session)), time.monotonic() + ASKING)
        if lane is None:
            return False
        self._lane = lane
        try:
            if not self._closed.is_set():
                self._listen(lane)
        finally:
            self._lane = None
            if self.number:
                self.number = 0
                self.losses += 1
            lane.messages.abort()  # a goodbye could wait for a host that takes nothing
            session.release(lane)
        return True

    def _listen(self, lane: Lane) -> None:
        lane.messages.stream.set_timeout(self._silence)
        lane.post(Watch(lane.next_id()))
        while True:
            message, _ = lane.part()
            if isinstance(message, Error):
                raise from_wire(message.code, message.message)
            if not isinstance(message, Changed) or message.watch <= 0 or self.number not in (0, message.watch):
                raise ProtocolError("the host answered Watch with something else")
            if max(map(len, (message.entries, message.names, message.unwatched))) > MAX_CHANGES:
                raise ProtocolError("the host tells too many changes at once")
            self.number = message.watch
            self._on_changed(message)
            if message.last:
                raise ConnectionLostError("the host ended the watch")

    def _say_once(self) -> None:
        if not self._told:
            self._told = True
            log.info("this host does not tell what changes; what is known of its files is used for a short time only")


def _open(session: Session) -> Lane | None:
    return session.open_lane() if can_watch(session) else None
