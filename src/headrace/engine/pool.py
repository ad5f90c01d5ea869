"""How much a transfer asks for at once, and over how many connections: rules on measurements, without a clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headrace.engine.estimates import NOISE, Climb, Rates, RoundTrips
from headrace.protocol.messages import CHUNK_SIZE

MIN_REQUESTS: Final = 4
MAX_REQUESTS: Final = 256
START_REQUESTS: Final = 16

GAIN: Final = 2.0  # times the bandwidth-delay product: the rate can double within a round trip, so growth is seen
BLOATED: Final = 2.0  # times the baseline: from here on the round trip is mostly waiting in a queue
CALM: Final = 1.25  # times the baseline: below this there is room for more
SHRINK: Final = 0.75
DRAIN: Final = 0.85  # of the product: a queue runs empty, and little is lost
SUSTAINED: Final = 4  # fresh samples in a row before they are believed

PAUSE: Final = 8  # baseline round trips after a change in which nothing else changes
GROW_PAUSE: Final = 0.5  # seconds, or PAUSE: between additive steps
LOWER_AFTER: Final = 5.0  # seconds for which a smaller product has to last
PROBE_AFTER: Final = 5.0  # seconds without a round trip near the baseline
PROBE_AGAIN: Final = 1.0  # seconds: to the next one, where more requests brought more rate
SURE: Final = 3  # such probes in a row
PROBE_TIME: Final = 0.2  # seconds, and some round trips
WARN_EVERY: Final = 60.0  # seconds


class StreamPool:
    """The numbers of one transfer. `observe` is for one thread; what it decides may be read from any.

    requests: how many should be in flight, on all connections together, 4 to 256. reason: why a number last changed:
    start, forced, bdp, bufferbloat, held, recovered, probe, route, no-rtt or climb.

    chunk_size: bytes that one request asks for. fixed_requests, fixed_connections: that number stays what it is.
    warn: hears of a queue that is too long, at most once a minute.
    """

    def __init__(
        self,
        *,
        chunk_size: int = CHUNK_SIZE,
        fixed_requests: int | None = None,
        fixed_connections: int | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        if min(chunk_size, fixed_requests or 1, fixed_connections or 1) < 1:
            raise ValueError("a size or a number under 1")
        self._chunk_size = chunk_size
        self._fixed_requests = fixed_requests
        self._fixed_connections = fixed_connections
        self._warn = warn
        self.requests = fixed_requests or START_REQUESTS
        self.reason = "forced" if fixed_requests else "start"
        self._now = -math.inf
        self._rtts = RoundTrips()
        self._rates = Rates()
        self._climb = Climb()
        self._over = 0  # fresh samples in a row that were BLOATED
        self._ceiling: int | None = None  # set by a shrink, raised step by step
        self._peak = START_REQUESTS  # what the first shrink of a series began at
        self._steps = 0  # of growth since something waited
        self._before: _Mark | None = None  # at the last shrink, to see what came of it
        self._held = False  # shrinking costs rate and does not shorten the queue: it is not ours
        self._quiet_until = -math.inf  # no change before
        self._needed = -math.inf  # when as many requests as now were last needed
        self._probe: _Mark | None = None
        self._probed = -math.inf
        self._gains = 0  # probes in a row in which more requests brought more rate; negative: brought none
        self._warned = -math.inf

    @property
    def connections(self) -> int:
        """How many connections they should be spread over: 1 to 8, or the number that was fixed."""
        return self._fixed_connections or min(self._climb.connections, self.requests)

    @property
    def baseline_rtt(self) -> float | None:
        """Seconds; the least round trip of late. None while no measurement can be trusted."""
        return self._rtts.baseline

    @property
    def rate(self) -> float:
        """Bytes a second: the most that was delivered of late."""
        return self._rates.best

    def observe(self, now: float, bytes_delivered: int, rtt: float | None) -> None:
        """One measurement. now: seconds of a clock that does not go back; bytes_delivered: all bytes so far;
        rtt: seconds, the kernel's or the transport's current figure (the least of several connections'), or None.

        Several a round trip are best. What makes no sense (time or bytes that go back, an rtt of 0) is left out.
        """
        if not math.isfinite(now) or now <= self._now:
            return
        self._now = now
        fresh = self._rtts.add(now, rtt, keep=self._cannot_drain())
        self._rates.add(now, bytes_delivered, self._rtts.recent or 0.0)
        if fresh is not None:
            self._over = self._over + 1 if self._bloated(fresh) else 0
        if not self._fixed_requests:
            self._decide(now)
        if self._fixed_connections:
            return
        if self._probe:
            self._climb.epoch = None  # it would measure the probe
        elif self._climb.observe(now, bytes_delivered, self._rtts.recent or 0.0, self.requests, self.link_is_full):
            self.reason = "climb"

    # ---- requests in flight ------------------------------------------------------------------------------------

    def _decide(self, now: float) -> None:
        baseline = self._rtts.baseline
        if baseline is None or not self._rates.best:
            self._needed = now
            if self._rtts.lost:  # without it nothing says that less is enough
                self._forget_queue()
                self._set(now, max(self.requests, START_REQUESTS), "no-rtt")
            return
        if self._probe:
            if now >= self._probe.until:
                self._end_probe(now, self._probe)
            return
        if self._rtts.longer:
            self._rtts.longer = False
            self._forget_queue()
        if now < self._quiet_until:
            return
        if self._over >= SUSTAINED and not self._held and self.requests > MIN_REQUESTS:
            self._shrink(now)
        elif self._wants_probe(now):
            self._begin_probe(now)
        elif self._ceiling is not None:
            self._recover(now, baseline)
        else:
            self._follow(now, self._ideal())

    def _product(self) -> float:
        """The bandwidth-delay product in requests."""
        return self._rates.best * (self._rtts.baseline or 0.0) / self._chunk_size

    def _ideal(self) -> int:
        # On a short path the host's own work for a chunk takes longer than the network; the product says nothing.
        baseline = self._rtts.baseline or 0.0
        least = START_REQUESTS if baseline < NOISE else MIN_REQUESTS
        return max(least, math.ceil(min(MAX_REQUESTS, GAIN * self._product())))

    def _follow(self, now: float, ideal: int) -> None:
        """Up at once, down only when less was enough for a while: a rate that swings moves nothing."""
        if ideal >= self.requests * SHRINK:
            self._needed = now
        if ideal > self.requests * CALM or now - self._needed >= LOWER_AFTER:
            self._set(now, ideal, "bdp")

    def _shrink(self, now: float) -> None:
        rtt, rate = self._rtts.recent or 0.0, self._rates.latest
        before = self._before
        if before and 0.9 < rtt / before.rtt < 1.1 and 0.6 < rate / before.rate < 0.85:
            # The last step took rate and left the delay: a longer path, or somebody else's queue. (A link that became
            # slower takes rate and adds delay.)
            self._before, self._held = None, True
            self._ceiling = max(before.requests, self.requests)
            self._set(now, self._ceiling, "held")
            return
        if self._ceiling is None:
            self._peak = self.requests
        self._steps = 0
        self._before = _Mark(self.requests, rtt, rate)
        self._ceiling = max(MIN_REQUESTS, int(self.requests * SHRINK))
        self._set(now, self._ceiling, "bufferbloat")
        if self._warn and now - self._warned >= WARN_EVERY:
            self._warned = now
            least = (self._rtts.baseline or 0.0) * 1000
            self._warn(f"the link's queue is long: {rtt * 1000:.0f} ms, {least:.0f} ms without it; asking for less")

    def _recover(self, now: float, baseline: float) -> None:
        """Gives back step by step what was taken, as long as nothing waits."""
        assert self._ceiling is not None
        recent = self._rtts.recent or 0.0
        if recent >= CALM * baseline and recent - baseline >= NOISE / 2:
            self._needed, self._steps = now, 0
            return
        self._before, self._held = None, False
        ideal = self._ideal()
        if self._ceiling >= ideal:
            self._forget_queue()
            self._follow(now, ideal)
            return
        self._steps += 1  # in a row: the longer nothing waits, the larger
        self._ceiling = min(ideal, self._ceiling + max(1, self._peak // 16) * (1 + self._steps // 4))
        self._set(now, self._ceiling, "recovered")
        self._quiet_until = max(self._quiet_until, now + GROW_PAUSE)

    def _forget_queue(self) -> None:
        self._ceiling = self._before = None
        self._probe = None
        self._held = False
        self._needed = self._now

    @property
    def link_is_full(self) -> bool:
        """Whether bytes wait on the path. One connection more would only make more of them wait."""
        recent, baseline = self._rtts.recent, self._rtts.baseline
        return recent is not None and baseline is not None and recent - baseline > NOISE

    def _bloated(self, rtt: float) -> bool:
        baseline = self._rtts.baseline
        return baseline is not None and rtt > BLOATED * baseline and rtt - baseline > NOISE

    def _set(self, now: float, requests: int, reason: str) -> None:
        requests = min(MAX_REQUESTS, max(MIN_REQUESTS, requests))
        if requests == self.requests:
            return
        self.requests = requests
        self.reason = reason
        self._over = 0
        self._needed = now
        # What was asked for before is answered after one round trip, queue included, and measured after another.
        baseline, recent = self._rtts.baseline or 0.0, self._rtts.recent or 0.0
        self._quiet_until = now + max(PAUSE * max(baseline, NOISE), 2 * recent)

    # ---- is the baseline still true? ---------------------------------------------------------------------------

    def _cannot_drain(self) -> bool:
        """Whether even the fewest requests can stand in a queue. Its delay must never pass for the path's own then:
        the product would grow with it, and with the product the queue."""
        return DRAIN * self._product() < MIN_REQUESTS

    def _wants_probe(self, now: float) -> bool:
        recent, baseline = self._rtts.recent, self._rtts.baseline
        if recent is None or baseline is None or recent - baseline < NOISE:
            return False
        # More requests than now only where fewer could not help.
        worth = self._over >= SUSTAINED if self._cannot_drain() else DRAIN * self._product() < self.requests
        return worth and now - max(self._rtts.near, self._probed) >= PROBE_AFTER

    def _begin_probe(self, now: float) -> None:
        """Less than the pipe holds, for a moment: the queue runs empty and the path's own round trip shows. Where
        fewer requests are not allowed, more: a longer path answers with rate, a queue of our own only with delay."""
        lifts = self._cannot_drain()
        rtt = self._rtts.recent or 0.0
        until = now + PROBE_TIME + (3 if lifts else 1.5) * rtt
        self._probe = _Mark(self.requests, rtt, self._rates.latest, until, lifts)
        self._set(now, 2 * self.requests if lifts else int(DRAIN * self._product()), "probe")

    def _end_probe(self, now: float, probe: _Mark) -> None:
        self._probe, self._probed = None, now
        self._set(now, probe.requests, "probe")
        if not probe.lifts:
            return
        # Three in a row, as a rate that swings can look like it once.
        gained = self._rates.latest > 1.2 * probe.rate and 0.8 < (self._rtts.recent or 0.0) / probe.rtt < 1.6
        self._gains = max(self._gains, 0) + 1 if gained else min(self._gains, 0) - 1
        if self._gains == SURE:
            self._gains = 0
            self._rtts.restart(now, probe.rtt)
            self._forget_queue()
            self._set(now, self._ideal(), "route")
        elif gained:
            self._probed -= PROBE_AFTER - PROBE_AGAIN
        else:  # such a probe lengthens the queue: rarer while it is in vain
            self._probed += PROBE_AFTER * min(-self._gains - 1, 5)


@dataclass(frozen=True, slots=True)
class _Mark:
    """How things stood when something was changed for a trial. until, lifts: of a probe."""

    requests: int
    rtt: float
    rate: float
    until: float = 0.0
    lifts: bool = False
