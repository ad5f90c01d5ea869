"""Wrong codes cost, right ones nothing, and many at once are no way around it."""

from __future__ import annotations

import threading

import pytest

from headrace.errors import ShareLockedError
from headrace.host.guesses import FIRST_LOCK, LONGEST_LOCK, MAX_ADDRESSES, TRIES, GuessLimit

HERE, THERE = "192.168.1.20", "10.0.0.7"


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def locks() -> list[float]:
    return []


@pytest.fixture
def limit(clock: Clock, locks: list[float]) -> GuessLimit:
    return GuessLimit(clock, locks.append)


def guess_wrong(limit: GuessLimit, times: int = 1, address: str = HERE) -> None:
    for _ in range(times):
        limit.started(address)
        limit.wrong(address)


def guess_right(limit: GuessLimit, address: str = HERE) -> None:
    limit.started(address)
    limit.right(address)


def test_ten_wrong_codes_lock_for_a_minute(limit: GuessLimit, clock: Clock, locks: list[float]) -> None:
    guess_wrong(limit, TRIES - 1)
    assert limit.locked_for(HERE) == 0
    assert locks == []
    guess_wrong(limit)
    assert limit.locked_for(HERE) == FIRST_LOCK == 60
    assert locks == [60]
    assert limit.wrong_total == TRIES == 10
    clock.now += 59.5
    assert limit.locked_for(HERE) == 0.5
    clock.now += 0.5
    assert limit.locked_for(HERE) == 0
    assert locks == [60], "told once"


def test_a_locked_share_starts_no_guess(limit: GuessLimit) -> None:
    guess_wrong(limit, TRIES)
    with pytest.raises(ShareLockedError, match="60 s") as refusal:
        limit.started(HERE)
    assert refusal.value.retry_after == 60
    assert limit.wrong_total == TRIES


def test_every_further_ten_double_the_time_up_to_a_day(limit: GuessLimit, clock: Clock, locks: list[float]) -> None:
    for _ in range(14):
        guess_wrong(limit, TRIES)
        clock.now += limit.locked_for(HERE)
    assert locks[:5] == [60, 120, 240, 480, 960]
    assert max(locks) == LONGEST_LOCK == 24 * 3600
    assert locks == sorted(locks)
    assert locks[-3:] == [LONGEST_LOCK] * 3


def test_a_share_that_is_guessed_at_for_years_still_locks(limit: GuessLimit, clock: Clock, locks: list[float]) -> None:
    for _ in range(1100):
        guess_wrong(limit, TRIES)
        clock.now += LONGEST_LOCK
    assert len(locks) == 1100
    assert locks[-1] == LONGEST_LOCK


def test_a_year_of_guessing_gets_nowhere(limit: GuessLimit, clock: Clock) -> None:
    year = 365 * 24 * 3600.0
    start = clock.now
    while clock.now < start + year:
        guess_wrong(limit, TRIES)
        clock.now += limit.locked_for(HERE)
    assert limit.wrong_total < 4000


def test_right_codes_cost_nothing(limit: GuessLimit, locks: list[float]) -> None:
    for _ in range(5 * TRIES):
        guess_right(limit)
    assert limit.locked_for(HERE) == 0
    assert locks == []
    assert limit.wrong_total == 0


def test_a_right_code_takes_back_only_its_own(limit: GuessLimit) -> None:
    """Or somebody with the code could wipe out the traces of those who guess."""
    guess_wrong(limit, 5)
    guess_right(limit)
    guess_right(limit, THERE)
    guess_wrong(limit, 4)
    assert limit.locked_for(HERE) == 0
    guess_wrong(limit)
    assert limit.locked_for(HERE) == 60


def test_a_right_code_after_nine_wrong_ones_does_not_lock(limit: GuessLimit, locks: list[float]) -> None:
    guess_wrong(limit, TRIES - 1)
    guess_right(limit)
    assert limit.locked_for(HERE) == 0
    assert locks == []


def test_a_guess_that_is_under_way_takes_a_try(limit: GuessLimit, locks: list[float]) -> None:
    """The peer may know by now whether it was right, though it has not said so."""
    for _ in range(TRIES):
        limit.started(HERE)
    with pytest.raises(ShareLockedError, match="at this moment") as caught:
        limit.started(THERE)
    assert 0 < caught.value.retry_after < FIRST_LOCK
    assert locks == []
    limit.right(HERE)
    limit.started(HERE)
    for _ in range(TRIES):
        limit.wrong(HERE)
    assert locks == [60]


def test_many_at_once_are_no_way_around_it(limit: GuessLimit, locks: list[float]) -> None:
    start = threading.Barrier(40)
    started: list[bool] = []

    def guess() -> None:
        start.wait(10)
        try:
            limit.started(HERE)
        except ShareLockedError:
            started.append(False)
        else:
            started.append(True)

    threads = [threading.Thread(target=guess) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started.count(True) == TRIES
    for _ in range(TRIES):
        limit.wrong(HERE)
    assert locks == [60]


def test_right_codes_of_many_at_once_wait_for_each_other(clock: Clock, locks: list[float]) -> None:
    limit, start = GuessLimit(clock, locks.append, patience=30.0), threading.Barrier(40)
    under_way, most = 0, 0
    counting = threading.Lock()

    def guess(number: int) -> None:
        nonlocal under_way, most
        start.wait(10)
        limit.started(f"10.0.0.{number}")
        with counting:
            under_way += 1
            most = max(most, under_way)
        threading.Event().wait(0.01)
        with counting:
            under_way -= 1
        limit.right(f"10.0.0.{number}")

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert under_way == 0 and most <= TRIES and locks == [] and limit.wrong_total == 0


def test_who_waits_for_others_is_refused_when_they_were_wrong(clock: Clock, locks: list[float]) -> None:
    limit, refused = GuessLimit(clock, locks.append, patience=30.0), threading.Event()
    for _ in range(TRIES):
        limit.started(HERE)

    def late() -> None:
        with pytest.raises(ShareLockedError, match="too many wrong codes"):
            limit.started(THERE)
        refused.set()

    thread = threading.Thread(target=late)
    thread.start()
    for _ in range(TRIES):
        limit.wrong(HERE)
    assert refused.wait(10)
    thread.join()
    assert locks == [60]


def test_wrong_codes_from_several_addresses_lock_the_share(limit: GuessLimit, locks: list[float]) -> None:
    for number in range(TRIES):
        guess_wrong(limit, address=f"10.0.0.{number}")
    assert limit.locked_for("172.16.0.1") == 60, "also for who has not guessed yet"
    assert locks == [60]


def test_an_address_is_locked_by_its_own_ten_though_the_share_is_not(
    limit: GuessLimit, clock: Clock, locks: list[float]
) -> None:
    guess_wrong(limit, 5, HERE)
    guess_wrong(limit, 5, THERE)
    clock.now += 60
    guess_wrong(limit, 5, HERE)
    assert limit.locked_for(HERE) == 60
    assert limit.locked_for(THERE) == 0
    with pytest.raises(ShareLockedError):
        limit.started(HERE)
    guess_right(limit, THERE)
    assert locks == [60], "only a lock of the share is told"


def test_addresses_are_not_remembered_without_bound(limit: GuessLimit, clock: Clock) -> None:
    for number in range(MAX_ADDRESSES * 2):
        limit.locked_for(f"a{number}")
    for number in range(MAX_ADDRESSES):
        limit.started(f"b{number}")
        limit.right(f"b{number}")
    for number in range(MAX_ADDRESSES // 2):
        guess_wrong(limit, address=f"c{number}")
        clock.now += limit.locked_for("d")
    assert len(limit._addresses) <= MAX_ADDRESSES


def test_an_address_that_was_forgotten_is_still_counted_by_the_share(limit: GuessLimit, locks: list[float]) -> None:
    limit.started(HERE)
    for number in range(MAX_ADDRESSES + 1):
        limit.locked_for(f"10.0.{number >> 8}.{number & 255}")
    limit.wrong(HERE)
    guess_wrong(limit, TRIES - 1)
    assert locks == [60]


def test_a_listener_that_asks_back_is_not_locked_out(clock: Clock) -> None:
    """on_lock is called when nothing is held."""
    asked: list[float] = []
    guesses = GuessLimit(clock, lambda seconds: asked.append(guesses.locked_for(HERE)))
    guess_wrong(guesses, TRIES)
    assert asked == [60]
