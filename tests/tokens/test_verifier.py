"""Verification: what becomes of a token that was refused once; the API is a stand-in on loopback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agent_runtime.model.state import TokenTrouble, Verification
from agent_runtime.model.tokens import Token
from agent_runtime.secret.generations import Generation, GenerationLedger
from agent_runtime.standins.messages_api import MessagesApi, serve
from agent_runtime.telemetry.events import EventLog
from agent_runtime.tokens.probe import Probe
from agent_runtime.tokens.status import TokenStatuses
from agent_runtime.tokens.verifier import RefusalVerifier

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = Token("sk-ant-oat01-the-token-of-these-tests-00000000000000")
GENERATION = Generation(1, TOKEN, 0.0)
REFUSED, BLOCKED, BILLING = TokenTrouble.REFUSED, TokenTrouble.BLOCKED, TokenTrouble.BILLING
CONFIRMED, GOOD, OPEN = Verification.CONFIRMED, Verification.GOOD, Verification.OPEN


@pytest.fixture
def api() -> MessagesApi:
    return MessagesApi()


@pytest.fixture
def url(api: MessagesApi) -> Iterator[str]:
    with serve(api) as base_url:
        yield base_url


class Asked:
    """A confirmer with what it writes to; *url* None: the probe is off."""

    def __init__(self, url: str | None, seconds: float = 5.0) -> None:
        self.statuses = TokenStatuses(GenerationLedger(None))
        self.events = EventLog()
        probe = None if url is None else Probe({"ANTHROPIC_BASE_URL": url}, timeout_seconds=seconds)
        self.confirmer = RefusalVerifier(self.statuses, probe, self.events)

    async def confirm(
        self, by: str | None = "one", *, may_condemn: bool = True, trouble: TokenTrouble = REFUSED
    ) -> Verification:
        return await self.confirmer.verify(
            GENERATION, by=by, trouble=trouble, may_condemn=may_condemn, rule="seen", model=None
        )

    @property
    def told(self) -> list[tuple[str, object]]:
        return [(event.type, event.data["rule"]) for event in self.events.after(0)[0]]

    @property
    def refusals(self) -> list[object]:
        return [rule for kind, rule in self.told if kind == "token.refused"]


def test_a_token_is_suspect_before_it_is_asked_about_and_no_longer_than_until_it_has_been(
    api: MessagesApi, url: str
) -> None:
    newer = Generation(2, Token("sk-ant-oat01-the-token-of-these-tests-00000000000001"), 0.0)
    api.accept(TOKEN)
    asked = Asked(url)

    assert asked.confirmer.begin_check(GENERATION)
    assert asked.confirmer.begin_check(newer)
    assert asked.statuses.is_suspect(GENERATION)
    asyncio.run(asked.confirmer.try_again(GENERATION))

    assert not asked.statuses.is_suspect(GENERATION)
    assert asked.statuses.is_suspect(newer), "what is known of one says nothing of another"


@pytest.mark.parametrize(
    ("probe", "may_condemn", "expected", "rules"),
    [
        ("valid", True, GOOD, []),
        ("valid", False, GOOD, []),
        ("expired", True, CONFIRMED, ["probe"]),
        ("expired", False, CONFIRMED, ["probe"]),
        ("server_error", True, CONFIRMED, ["seen"]),
        ("server_error", False, OPEN, []),
        ("hang", True, CONFIRMED, ["seen"]),
        ("off", True, CONFIRMED, ["seen"]),
        ("off", False, OPEN, []),
    ],
)
def test_the_probe_decides_and_where_it_cannot_what_was_seen_before_any_tool(  # noqa: PLR0917 - a table
    api: MessagesApi, url: str, probe: str, may_condemn: bool, expected: Verification, rules: list[str]
) -> None:
    if probe not in {"valid", "off"}:
        api.on(TOKEN, probe)
    asked = Asked(None if probe == "off" else url, seconds=0.3 if probe == "hang" else 5.0)

    assert asyncio.run(asked.confirm(may_condemn=may_condemn)) is expected

    assert asked.refusals == rules
    assert asked.statuses.trouble_of(GENERATION) is (REFUSED if expected is CONFIRMED else None)
    assert not asked.statuses.is_suspect(GENERATION), "what a tool may have forged holds up nobody else"


@pytest.mark.parametrize(
    ("trouble", "probe", "may_condemn", "expected", "told"),
    [
        (BLOCKED, "valid", True, GOOD, []),
        (BLOCKED, "valid", False, GOOD, []),
        (BLOCKED, "expired", False, CONFIRMED, [("token.refused", "probe")]),
        (BLOCKED, "server_error", True, CONFIRMED, [("token.blocked", "seen")]),
        (BLOCKED, "server_error", False, OPEN, []),
        (BILLING, "valid", True, CONFIRMED, [("token.billing", "seen")]),
        (BILLING, "valid", False, OPEN, []),
        (BILLING, "expired", False, CONFIRMED, [("token.refused", "probe")]),
        (BILLING, "server_error", False, OPEN, []),
        (BILLING, "off", True, CONFIRMED, [("token.billing", "seen")]),
        (BILLING, "off", False, OPEN, []),
    ],
)
def test_a_block_is_confirmed_as_a_refusal_is_and_of_money_the_probe_s_200_says_nothing(  # noqa: PLR0917 - a table
    api: MessagesApi,
    url: str,
    trouble: TokenTrouble,
    probe: str,
    may_condemn: bool,
    expected: Verification,
    told: list[tuple[str, str]],
) -> None:
    if probe not in {"valid", "off"}:
        api.on(TOKEN, probe)
    asked = Asked(None if probe == "off" else url)

    assert asyncio.run(asked.confirm(may_condemn=may_condemn, trouble=trouble)) is expected

    assert asked.told == told
    assert not asked.statuses.is_suspect(GENERATION)
    if trouble is BILLING and may_condemn:
        assert api.seen(TOKEN).requests == 0, "what was seen is enough, and the answer would say nothing"


def test_a_trouble_that_is_known_changes_only_by_what_no_tool_can_forge(api: MessagesApi, url: str) -> None:
    api.on(TOKEN, "server_error")
    asked = Asked(url)

    async def one_after_another() -> None:
        for trouble, may_condemn in ((BLOCKED, True), (BILLING, False), (BLOCKED, True), (BILLING, True)):
            assert await asked.confirm(may_condemn=may_condemn, trouble=trouble) is CONFIRMED

    asyncio.run(one_after_another())

    assert asked.told == [("token.blocked", "seen"), ("token.billing", "seen")]
    assert api.seen(TOKEN).requests == 1, "a block that is known is not asked about again"


def test_an_account_that_could_not_pay_is_cleared_by_an_answer_of_the_model_only(api: MessagesApi, url: str) -> None:
    asked = Asked(url)
    asyncio.run(asked.confirm(trouble=BILLING))

    assert not asked.confirmer.begin_check(GENERATION), "the probe has nothing to find out"
    asked.confirmer.note_accepted(GENERATION)
    assert asked.statuses.trouble_of(GENERATION) is BILLING
    asked.confirmer.note_accepted(GENERATION, served=True)

    assert asked.statuses.trouble_of(GENERATION) is None


@pytest.mark.parametrize(("reply", "expected"), [("expired", CONFIRMED), (None, GOOD)])
def test_however_many_meet_it_at_once_one_question_is_asked_and_one_refusal_told(
    api: MessagesApi, url: str, reply: str | None, expected: Verification
) -> None:
    if reply:
        api.on(TOKEN, reply)
    asked = Asked(url)

    async def all_at_once() -> list[Verification]:
        return await asyncio.gather(*(asked.confirm(f"execution-{n}") for n in range(16)))

    assert asyncio.run(all_at_once()) == [expected] * 16

    assert api.seen(TOKEN).requests == 1
    assert asked.refusals == (["probe"] if expected is CONFIRMED else [])
    assert not asked.statuses.is_suspect(GENERATION)


def test_a_refusal_that_is_known_is_not_asked_about_again(api: MessagesApi, url: str) -> None:
    api.on(TOKEN, "expired")
    asked = Asked(url)

    async def twice() -> list[Verification]:
        return [await asked.confirm("one"), await asked.confirm("another", may_condemn=False)]

    assert asyncio.run(twice()) == [CONFIRMED, CONFIRMED]
    assert api.seen(TOKEN).requests == 1


@pytest.mark.slow
def test_while_the_question_is_out_the_token_is_suspect_but_not_for_an_older_one(api: MessagesApi, url: str) -> None:
    api.on(TOKEN, "hang")
    asked = Asked(url, seconds=0.5)

    async def look(by: str | None) -> bool:
        asking = asyncio.ensure_future(asked.confirm(by, may_condemn=False))
        await asyncio.to_thread(api.wait_for_requests, TOKEN, api.seen(TOKEN).requests + 1)
        suspect = asked.statuses.is_suspect(GENERATION)
        await asking
        return suspect

    assert not asyncio.run(look(None))
    assert asyncio.run(look("one"))


def test_one_that_is_condemned_by_another_meanwhile_is_not_open(api: MessagesApi, url: str) -> None:
    api.on(TOKEN, "server_error")
    asked = Asked(url)

    async def both() -> list[Verification]:
        return list(await asyncio.gather(asked.confirm("one"), asked.confirm("another", may_condemn=False)))

    assert asyncio.run(both()) == [CONFIRMED, CONFIRMED]
    assert asked.refusals == ["seen"]


def test_a_verification_runs_to_its_end_though_no_execution_waits_for_it(api: MessagesApi, url: str) -> None:
    api.on(TOKEN, "expired")
    asked = Asked(url)

    async def leave() -> Verification:
        begun = asked.confirmer.start(asked.confirm())
        waiting = asyncio.ensure_future(asyncio.wait_for(asyncio.shield(begun), 10))
        await asyncio.sleep(0)
        waiting.cancel()
        return await begun

    assert asyncio.run(leave()) is CONFIRMED
    assert asked.refusals == ["probe"]


def test_a_token_is_accepted_again_only_by_a_request_from_after_the_refusal() -> None:
    asked = Asked(None)
    asyncio.run(asked.confirm())

    asked.confirmer.note_accepted(GENERATION, since=0.0)
    assert asked.statuses.trouble_of(GENERATION) is REFUSED
    asked.confirmer.note_accepted(GENERATION)

    assert asked.statuses.trouble_of(GENERATION) is None
