"""Which generation a refusal is about, by when the CLI in use takes a newer one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.delivery.delivery import Delivered
from agent_runtime.delivery.reload_check import ReloadBehaviour
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.matching import Rule
from agent_runtime.execution.attempt_data import Answered, AttemptEvent, Reached
from agent_runtime.execution.child_token import SETTLED_SECONDS, ChildToken
from agent_runtime.model.tokens import Token
from agent_runtime.secret.file import SecretFile, SecretStatus
from agent_runtime.secret.generations import Generation, GenerationLedger

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST, SECOND, THIRD = (
    Generation(number, Token(f"sk-ant-oat01-of-generation-{number}-000000000"), loaded_at=0.0) for number in (1, 2, 3)
)
API_KEY = Generation(4, Token("sk-ant-api03-of-generation-4-000000000"), loaded_at=0.0)


REFUSAL = Detection(Rule("a-rule", ErrorClass.AUTH, condemns=True), Channel.STDERR, status=401)


class Unread(SecretFile):
    """A secret file that counts how often it is read."""

    polls = 0

    def poll(self) -> SecretStatus:
        self.polls += 1
        return self.status


class Child(ChildToken):
    """A child whose generations the test gives; it returns each one that newly reaches it."""

    def __init__(self, reload_behaviour: Callable[[], ReloadBehaviour | None]) -> None:
        self.published: list[AttemptEvent] = []
        self.secret = Unread(Path("unread"), ledger=GenerationLedger(None))
        delivered = Delivered(FIRST, "file", {}, reload_behaviour, lambda _newer: True)
        super().__init__(delivered, 0.0, self.secret, self.published.append)

    def loads(self, generation: Generation, now: float) -> Generation | None:
        self.published.clear()
        self.record_loaded(generation, now)
        return self._reached()

    def rereads(self, now: float) -> Generation | None:
        self.published.clear()
        self.record_reread(now)
        return self._reached()

    def _reached(self) -> Generation | None:
        [*reached] = (event.generation for event in self.published if isinstance(event, Reached))
        return reached[0] if reached else None


def child_that(reload_behaviour: ReloadBehaviour) -> Child:
    return Child(lambda: reload_behaviour)


def test_the_generation_of_the_spawn_is_charged_from_the_first_request_on() -> None:
    assert child_that(ReloadBehaviour.ON_REQUEST).carried_at(0.0) == (FIRST, 0.0)


def test_a_newer_one_is_charged_only_when_the_child_has_had_it_for_a_while() -> None:
    child = child_that(ReloadBehaviour.ON_REQUEST)

    assert child.loads(SECOND, 10.0) is SECOND
    assert child.newest is SECOND
    assert child.carried_at(10.0 + SETTLED_SECONDS / 2) == (FIRST, 0.0)
    assert child.carried_at(10.0 + SETTLED_SECONDS) == (SECOND, 10.0)


def test_of_several_the_latest_settled_one_is_charged() -> None:
    child = child_that(ReloadBehaviour.ON_REQUEST)
    child.loads(SECOND, 10.0)
    child.loads(THIRD, 11.5)

    assert child.carried_at(12.0) == (SECOND, 10.0)
    assert child.carried_at(12.5) == (THIRD, 11.5)


def test_two_that_are_loaded_at_once_are_published_in_their_order() -> None:
    """The attempt's thread and the event loop may see one each; the last one published is the last in the record."""
    child = child_that(ReloadBehaviour.ON_REQUEST)
    published, later = [], threading.Thread(target=lambda: child.record_loaded(THIRD, 10.0))

    def publish(event: AttemptEvent) -> None:
        if isinstance(event, Reached):
            if event.generation is SECOND:
                later.start()
                later.join(0.2)  # by then the other thread has published, or waits for this one
            published.append(event.generation)

    child._publish = publish
    child.record_loaded(SECOND, 10.0)
    later.join(10)

    assert published == [SECOND, THIRD]


def test_what_looks_again_only_when_it_is_refused_holds_the_old_one_until_then() -> None:
    child = child_that(ReloadBehaviour.ON_REFUSAL)

    assert child.loads(SECOND, 10.0) is None
    assert child.carried_at(60.0) == (FIRST, 0.0)
    assert child.rereads(60.0) is SECOND
    assert child.carried_at(60.0) == (FIRST, 0.0), "the refusal that made it look is about the old one"
    assert child.carried_at(60.0 + SETTLED_SECONDS) == (SECOND, 60.0)
    assert child.rereads(70.0) is None


def test_what_repeats_a_refused_request_has_a_newer_one_as_soon_as_it_is_loaded_until_the_model_answers() -> None:
    child = child_that(ReloadBehaviour.ON_REFUSAL)

    assert child.charge(REFUSAL, 10.0) is REFUSAL
    assert child.loads(SECOND, 15.0) is SECOND
    assert child.carried_at(15.0 + SETTLED_SECONDS) == (SECOND, 15.0)
    child.record_answer(15.0 + SETTLED_SECONDS)
    assert child.loads(THIRD, 20.0) is None


@pytest.mark.parametrize("reload_behaviour", [ReloadBehaviour.ON_REQUEST, ReloadBehaviour.ON_REFUSAL])
def test_an_older_or_the_same_generation_changes_nothing(reload_behaviour: ReloadBehaviour) -> None:
    child = child_that(reload_behaviour)
    child.loads(THIRD, 1.0)
    child.rereads(1.0)

    assert child.loads(SECOND, 2.0) is None
    assert child.loads(THIRD, 2.0) is None
    assert child.rereads(2.0) is None
    assert child.newest is THIRD


@pytest.mark.parametrize("reload_behaviour", ReloadBehaviour)
def test_an_api_key_never_reaches_a_running_child(reload_behaviour: ReloadBehaviour) -> None:
    child = child_that(reload_behaviour)

    assert child.loads(API_KEY, 1.0) is None
    assert child.rereads(1.0) is None
    assert child.newest is FIRST


def test_what_never_looks_again_is_not_reached() -> None:
    child = child_that(ReloadBehaviour.NEVER)

    assert child.loads(SECOND, 1.0) is None
    assert child.rereads(1.0) is None
    assert child.carried_at(99.0) == (FIRST, 0.0)


def in_doubt(child: Child) -> bool:
    return child.is_in_doubt  # asked anew each time, for mypy too


def test_until_the_reload_check_has_ended_it_is_in_doubt_which_token_a_child_has() -> None:
    known: list[ReloadBehaviour | None] = [None]
    child = Child(lambda: known[0])
    assert not in_doubt(child)

    assert child.loads(SECOND, 1.0) is None
    assert in_doubt(child)

    known[0] = ReloadBehaviour.ON_REQUEST
    assert not in_doubt(child)
    assert child.loads(SECOND, 5.0) is SECOND, "told again, once it is known"
    assert child.carried_at(5.0 + SETTLED_SECONDS) == (SECOND, 5.0)


def test_a_child_that_never_looks_is_not_in_doubt() -> None:
    known: list[ReloadBehaviour | None] = [None]
    child = Child(lambda: known[0])
    child.loads(SECOND, 1.0)
    known[0] = ReloadBehaviour.NEVER

    assert not in_doubt(child)
    assert child.carried_at(9.0) == (FIRST, 0.0)


@pytest.mark.parametrize("reload_behaviour", [None, *ReloadBehaviour])
def test_before_a_refusal_is_charged_the_file_is_read_unless_a_newer_token_cannot_reach_the_child(
    reload_behaviour: ReloadBehaviour | None,
) -> None:
    child = Child(lambda: reload_behaviour)
    child.charge(REFUSAL, 1.0)

    assert child.secret.polls == (reload_behaviour is not ReloadBehaviour.NEVER)
    assert child.charged is FIRST


def test_a_refusal_of_what_may_have_been_either_of_two_tokens_condemns_neither() -> None:
    child = Child(lambda: None)
    assert child.charge(REFUSAL, 1.0) is REFUSAL
    child.loads(SECOND, 2.0)

    charged = child.charge(REFUSAL, 3.0)
    assert charged is not None
    assert not charged.condemns


def test_a_refusal_of_the_older_token_is_left_to_the_retry_that_carries_the_newer() -> None:
    child = child_that(ReloadBehaviour.ON_REQUEST)
    child.loads(SECOND, 2.0)

    assert child.charge(REFUSAL, 2.0 + SETTLED_SECONDS / 2) is None
    assert child.charge(REFUSAL, 2.0 + SETTLED_SECONDS) is REFUSAL
    assert child.charged is SECOND


def test_an_answer_is_published_once_for_each_generation() -> None:
    child = child_that(ReloadBehaviour.ON_REQUEST)
    child.record_answer(1.0)
    child.record_answer(2.0)
    child.record_loaded(SECOND, 3.0)
    child.record_answer(3.0 + SETTLED_SECONDS)

    answered = [(event.generation, event.since) for event in child.published if isinstance(event, Answered)]
    assert answered == [(FIRST, 0.0), (SECOND, 3.0)]
