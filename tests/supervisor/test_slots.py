"""Slots and their queue: who runs now, who is next."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agent_runtime.supervisor.slots import Slots, Ticket

if TYPE_CHECKING:
    from collections.abc import Iterator


class Hold:
    """Says whether new executions must wait."""

    on = False

    def __call__(self) -> bool:
        return self.on


@pytest.fixture
def hold() -> Hold:
    return Hold()


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """Tickets are futures of the running loop; nothing here needs it to turn."""

    async def current() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with asyncio.Runner() as runner:
        inner = runner.run(current())
        asyncio._set_running_loop(inner)
        yield
        asyncio._set_running_loop(None)


@pytest.fixture
def slots(hold: Hold) -> Slots:
    return Slots(2, 2, hold)


def granted(*tickets: Ticket) -> list[bool]:
    return [ticket.granted.done() for ticket in tickets]


def test_slots_are_given_out_first_come_first_served(slots: Slots) -> None:
    first, second, third, fourth = (slots.enqueue(Ticket()) for _ in range(4))
    assert granted(first, second, third, fourth) == [True, True, False, False]

    slots.leave(second)

    assert granted(third, fourth) == [True, False]
    assert repr(slots) == "<Slots 2/2 queue=1/2 ahead=0>"


def test_what_has_run_before_goes_ahead_of_the_queue_in_its_own_order(slots: Slots) -> None:
    first, second = slots.enqueue(Ticket()), slots.enqueue(Ticket())
    new = slots.enqueue(Ticket())
    earlier, later = slots.enqueue(Ticket(is_ahead=True)), slots.enqueue(Ticket(is_ahead=True))

    slots.leave(first)
    assert granted(earlier, later, new) == [True, False, False]
    slots.leave(second)
    assert granted(later, new) == [True, False]
    slots.leave(earlier)
    assert granted(new) == [True]


def test_while_new_ones_are_held_only_those_ahead_get_slots(slots: Slots, hold: Hold) -> None:
    hold.on = True
    new, ahead = slots.enqueue(Ticket()), slots.enqueue(Ticket(is_ahead=True))
    assert granted(new, ahead) == [False, True]

    hold.on = False
    slots.grant()

    assert granted(new) == [True]


@pytest.mark.parametrize(
    ("running", "waiting", "ahead", "is_full"),
    [
        (0, 0, 0, False),
        (2, 0, 0, False),
        (2, 1, 0, False),
        (2, 2, 0, True),
        (2, 1, 5, False),
        (2, 2, 1, True),
    ],
)
def test_the_queue_is_bounded_and_those_ahead_do_not_count_in_it(
    slots: Slots, running: int, waiting: int, ahead: int, is_full: bool
) -> None:
    for _ in range(running + waiting):
        slots.enqueue(Ticket())
    for _ in range(ahead):
        slots.enqueue(Ticket(is_ahead=True))

    assert slots.is_full() is is_full
    assert (slots.busy, slots.queue_length) == (running, waiting)


def test_free_slots_that_are_held_back_make_room_in_the_queue(slots: Slots, hold: Hold) -> None:
    hold.on = True
    for _ in range(3):
        slots.enqueue(Ticket())
    assert not slots.is_full(), "two free slots and two places in the queue are four"

    slots.enqueue(Ticket())

    assert slots.is_full()


def test_leaving_is_idempotent_from_a_slot_and_from_either_queue(slots: Slots) -> None:
    first, second = slots.enqueue(Ticket()), slots.enqueue(Ticket())
    new, ahead = slots.enqueue(Ticket()), slots.enqueue(Ticket(is_ahead=True))
    for ticket in (new, ahead, new, ahead):
        slots.leave(ticket)
    assert (slots.busy, slots.queue_length) == (2, 0)

    for ticket in (first, first, second, second):
        slots.leave(ticket)

    assert slots.busy == 0
    assert granted(new, ahead) == [False, False]


def test_one_that_left_twice_takes_no_slot_from_another(slots: Slots) -> None:
    first = slots.enqueue(Ticket())
    slots.leave(first)
    second, third = slots.enqueue(Ticket()), slots.enqueue(Ticket())

    slots.leave(first)

    assert slots.busy == 2
    assert granted(second, third, slots.enqueue(Ticket())) == [True, True, False]


def test_one_that_may_not_start_yet_is_passed_and_keeps_its_place(slots: Slots) -> None:
    free: list[bool] = []
    first, waiting = slots.enqueue(Ticket()), slots.enqueue(Ticket(may_start=lambda: bool(free)))
    second, third = slots.enqueue(Ticket()), slots.enqueue(Ticket())
    assert granted(first, waiting, second, third) == [True, False, True, False]

    free.append(True)
    slots.grant()
    assert granted(waiting, third) == [False, False], "there is no slot"
    slots.leave(second)

    assert granted(waiting, third) == [True, False], "it was there before"


def test_one_that_has_run_before_and_may_not_start_holds_nobody_up(slots: Slots) -> None:
    ahead = slots.enqueue(Ticket(is_ahead=True, may_start=lambda: False))

    assert granted(ahead, slots.enqueue(Ticket()), slots.enqueue(Ticket())) == [False, True, True]
    assert not slots.is_full()


@pytest.mark.parametrize(
    ("running", "blocked", "must_wait", "is_full"),
    [
        (1, 1, False, False),  # there is a slot
        (1, 2, False, False),
        (1, 2, True, True),  # which it could not use
        (1, 1, True, False),
        (2, 1, False, False),
        (2, 2, False, True),
    ],
)
def test_those_that_may_not_start_take_places_in_the_queue_and_no_slots(
    slots: Slots, running: int, blocked: int, must_wait: bool, is_full: bool
) -> None:
    for _ in range(blocked):
        slots.enqueue(Ticket(may_start=lambda: False))
    for _ in range(running):
        slots.enqueue(Ticket())

    assert slots.is_full(must_wait=must_wait) is is_full
    assert (slots.busy, slots.queue_length) == (running, blocked)
