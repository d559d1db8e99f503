"""What an attempt has used, counted from frames: those of the real CLI, and any others that a program may print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.claude.frame_repair import read_frame
from agent_runtime.claude.frames import bounds_message, decode_partial
from agent_runtime.claude.run_stats import RunStats, SessionCost
from agent_runtime.model.usage import ModelUsage, total_of

if TYPE_CHECKING:
    from collections.abc import Iterable

MODEL = "claude-sonnet-5-5"


def counted(*frames: dict[str, Any], before: SessionCost | None = None) -> RunStats:
    run_stats = RunStats()
    if before is not None:
        run_stats.usage.go_on_from(before)
    feed(run_stats, frames)
    return run_stats


def feed(run_stats: RunStats, frames: Iterable[dict[str, Any]]) -> None:
    for frame in frames:
        line = json.dumps(frame, separators=(",", ":")).encode()
        if frame["type"] == "stream_event":
            run_stats.add_partial(decode_partial(line) if bounds_message(line) else None)
        else:
            decoded = read_frame(line)
            assert decoded is not None
            run_stats.add(decoded)


def tokens(run_stats: RunStats) -> tuple[int, int, int, int]:
    total = total_of(run_stats.usage.so_far.by_model)
    return total.input_tokens, total.output_tokens, total.cache_creation_tokens, total.cache_read_tokens


def of(input_tokens: Any, output_tokens: Any, creation: Any = 0, read: Any = 0) -> dict[str, Any]:
    counts = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return counts | {"cache_creation_input_tokens": creation, "cache_read_input_tokens": read}


def block(usage: Any, message_id: str | None = "msg_1", *, parent: str | None = None, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "Hello."}]
    message = {"id": message_id, "model": MODEL, "content": content, "usage": usage} | more
    return {"type": "assistant", "parent_tool_use_id": parent, "message": message}


def begun(usage: Any, message_id: str = "msg_1") -> dict[str, Any]:
    message = {"id": message_id, "model": MODEL, "content": [], "usage": usage}
    return {"type": "stream_event", "event": {"type": "message_start", "message": message}}


def whole(usage: Any, parent: str | None = None) -> dict[str, Any]:
    event = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    return {"type": "stream_event", "event": event, "parent_tool_use_id": parent}


def reported(input_tokens: Any, output_tokens: Any, cost: Any = 0.5) -> dict[str, Any]:
    return {"inputTokens": input_tokens, "outputTokens": output_tokens, "costUSD": cost}


def result(*, cost: Any = 0.5, turns: Any = 1, usage: Any = None, **models: Any) -> dict[str, Any]:
    frame = {"type": "result", "subtype": "success", "is_error": False, "result": "Done.", "duration_ms": 100}
    names = {name.replace("_", "-"): used for name, used in models.items()}
    return frame | {"total_cost_usd": cost, "num_turns": turns, "usage": usage, "modelUsage": names}


def test_the_last_result_has_it_all() -> None:
    frames = [
        block(of(10, 1)),
        result(turns=2, usage=of(10, 20), sonnet=reported(10, 20, 0.4), haiku=reported(7, 3, 0.1)),
    ]

    stats = counted(*frames)

    usage = stats.usage.so_far
    assert not usage.is_estimated
    assert usage.by_model["haiku"] == ModelUsage(input_tokens=7, output_tokens=3, cost_usd=0.1)
    assert tokens(stats) == (17, 23, 0, 0)
    assert total_of(usage.by_model).cost_usd == pytest.approx(0.5)
    assert (total_of(usage.by_model).num_turns, usage.duration_ms) == (2, 100)


def test_results_of_further_turns_tell_the_sum_of_tokens_and_cost_but_their_own_turns_and_time() -> None:
    """As 2.1.332 does of work in the background."""
    first = result(turns=2, cost=0.2, usage=of(23, 43), sonnet=reported(23, 43, 0.2))
    second = result(turns=1, cost=0.3, usage=of(13, 23), sonnet=reported(36, 66, 0.3))

    usage = counted(block(of(10, 20)), first, block(of(13, 23), "msg_2"), second).usage.so_far

    assert total_of(usage.by_model) == ModelUsage(input_tokens=36, output_tokens=66, cost_usd=0.3, num_turns=3)
    assert (usage.duration_ms, usage.is_estimated) == (200, False)


def test_a_result_that_is_printed_twice_counts_once() -> None:
    one = result(turns=2, cost=0.2, usage=of(23, 43))

    usage = counted(block(of(23, 1)), one, one).usage.so_far

    assert total_of(usage.by_model) == ModelUsage(input_tokens=23, output_tokens=43, cost_usd=0.2, num_turns=2)


def test_what_comes_after_the_last_result_is_added_and_makes_it_an_estimate() -> None:
    frames = [block(of(10, 20)), result(sonnet=reported(10, 20)), block(of(5, 6, 7, 8), "msg_2")]

    stats = counted(*frames)

    assert tokens(stats) == (15, 26, 7, 8)
    assert stats.usage.so_far.is_estimated


@pytest.mark.parametrize(
    ("frames", "seen"),
    [
        ([block(of(10, 1)), block(of(10, 1)), whole({"output_tokens": 20})], (10, 20, 0, 0)),
        ([begun(of(10, 1)), block(of(10, 1)), block(of(10, 1)), whole({"output_tokens": 20})], (10, 20, 0, 0)),
        ([begun(of(10, 1, 2, 3)), block(of(10, 1, 2, 3)), whole(of(10, 20, 2, 3))], (10, 20, 2, 3)),
        ([begun(of(10, 1)), whole({"output_tokens": 20}), begun(of(11, 1), "msg_2")], (21, 21, 0, 0)),
        ([block(of(10, 1)), block(of(11, 1), "msg_2"), block(of(10, 1))], (21, 2, 0, 0)),
        ([block(of(10, 1), None), block(of(10, 1), None)], (20, 2, 0, 0)),
        ([block(of(10, 5)), block(of(100, 3), "msg_s", parent="toolu_1", model="haiku")], (110, 8, 0, 0)),
        ([block(of(0, 0), model="<synthetic>")], (0, 0, 0, 0)),
        ([], (0, 0, 0, 0)),
    ],
    ids=[
        *("blocks of one message", "its end has the output", "its end repeats all", "the next has begun", "mixed"),
        *("without ids", "a sub-agent's", "the CLI's own", "nothing"),
    ],
)
def test_without_a_result_the_frames_are_counted(frames: list[Any], seen: tuple[int, ...]) -> None:
    stats = counted(*frames)

    assert stats.usage.so_far.is_estimated
    assert tokens(stats) == seen


def test_a_message_counts_for_the_generation_that_was_in_use_when_it_began() -> None:
    run_stats = RunStats()

    def add(number: int, *frames: dict[str, Any]) -> None:
        run_stats.usage.generation = number
        feed(run_stats, frames)

    add(1, begun(of(10, 1)), block(of(10, 1)))
    add(2, block(of(10, 1)), whole({"output_tokens": 20}), begun(of(30, 1), "msg_2"))
    add(3, block(of(5, 5), "msg_s", parent="toolu_1", model="haiku"))
    before = run_stats.usage.so_far.seen
    add(3, result(turns=3, sonnet=reported(100, 200)))

    assert before == {
        1: {MODEL: ModelUsage(input_tokens=10, output_tokens=20, num_turns=1)},
        2: {MODEL: ModelUsage(input_tokens=30, output_tokens=1, num_turns=1)},
        3: {"haiku": ModelUsage(input_tokens=5, output_tokens=5)},
    }
    assert run_stats.usage.so_far.seen == before


def test_the_model_is_told_as_soon_as_a_frame_names_it() -> None:
    run_stats = RunStats(lambda text: text.replace("secret", "***"))

    def told(*frames: dict[str, Any]) -> tuple[str | None, int | None]:
        feed(run_stats, frames)
        return run_stats.usage.so_far.model_name, run_stats.usage.so_far.context_window

    assert told() == (None, None)
    assert told({"type": "system", "subtype": "init", "model": "secret[1m]"}) == ("***[1m]", 1_000_000)
    assert told(block(of(1, 1), parent="toolu_1", model="haiku"))[0] == "***[1m]"
    assert told(block(of(1, 1))) == (MODEL, 1_000_000)
    assert told(result(**{MODEL: reported(1, 1) | {"contextWindow": 300_000}})) == (MODEL, 300_000)


def test_the_context_is_the_prompt_of_the_last_own_request() -> None:
    frames = [block(of(10, 5)), block(of(3, 5, 20, 100), "msg_2"), block(of(900, 5), "msg_s", parent="toolu_1")]

    assert counted(*frames).usage.so_far.context_tokens == 123
    assert counted(*frames, result(sonnet=reported(913, 10))).usage.so_far.context_tokens == 123
    assert counted(*frames, block(None, "msg_3")).usage.so_far.context_tokens == 123


@pytest.mark.parametrize("odd", [None, -5, 1e300, 2**60, "7", True, [], {}, 0.5e-9, "sk-ant-oat01-x"])
def test_what_is_no_count_counts_as_nothing(odd: Any) -> None:
    entry = {"inputTokens": odd, "outputTokens": 3, "costUSD": odd, "contextWindow": odd}
    told = counted(block(of(odd, odd)), result(turns=1, usage=of(odd, 3), sonnet=entry, haiku=None))
    untold = counted(block(of(odd, 4)), block(odd, "msg_2"))
    by_turn = counted(result(usage=of(odd, 3), cost=odd, turns=odd if isinstance(odd, int) else 1))

    assert tokens(told) == (0, 3, 0, 0)
    assert tokens(untold) == (0, 4, 0, 0)
    assert tokens(by_turn) == (0, 3, 0, 0)


@pytest.mark.parametrize("usage", [None, [], "x", {"input_tokens": "1"}, 7])
@pytest.mark.parametrize("models", [{}, {"sonnet": None}, {"sonnet": {}}, {"sonnet": {"contextWindow": 7}}])
def test_a_result_that_tells_no_tokens_leaves_those_of_the_frames(usage: Any, models: dict[str, Any]) -> None:
    stats = counted(block(of(10, 20)), result(usage=usage, **models))

    assert tokens(stats) == (10, 20, 0, 0)
    assert total_of(stats.usage.so_far.by_model).cost_usd == 0.5


def test_a_message_that_broke_off_counts_where_the_result_leaves_it_out() -> None:
    """As it does from 1.0.128 to 2.1.197: measured with a stream that was cut and a request sent again."""
    broken, again = begun(of(50, 60)), [begun(of(13, 1), "msg_2"), whole({"output_tokens": 23})]

    left_out = counted(broken, *again, result(usage=of(13, 23), **{MODEL: reported(13, 23)}))
    other_name = counted(broken, *again, result(usage=of(13, 23), **{f"{MODEL}[1m]": reported(13, 23)}))

    assert tokens(left_out) == (63, 83, 0, 0)
    assert tokens(other_name) == (13, 23, 0, 0)
    assert list(other_name.usage.so_far.by_model) == [f"{MODEL}[1m]"]


def test_the_turns_of_a_summary_count_for_the_model_that_made_it() -> None:
    """No message of it is printed, and 2.1.30 counts the turns of the session."""
    summed_up = counted(result(turns=11, usage=of(0, 0), sonnet=reported(1900, 23)))
    [(model, usage)] = summed_up.usage.so_far.by_model.items()

    assert (model, usage.num_turns, usage.input_tokens) == ("sonnet", 11, 1900)
    assert list(counted(result(turns=1, cost=0)).usage.so_far.by_model) == ["unknown"]


def test_a_summary_of_which_only_the_cost_is_told_is_an_estimate() -> None:
    """As 1.0.128 and 2.0.76 tell of ``/compact``."""
    usage = counted(result(usage=of(0, 0), cost=2.85)).usage.so_far

    assert (usage.is_estimated, total_of(usage.by_model).cost_usd) == (True, 2.85)
    assert not counted(result(usage=of(0, 0), cost=0)).usage.so_far.is_estimated


def test_without_counts_by_model_the_turn_and_its_sub_agents_add_up() -> None:
    sub_agent = block(of(100, 3), "msg_s", parent="toolu_1", model="haiku")
    told = counted(block(of(10, 1)), sub_agent, result(usage=of(10, 20))).usage.so_far
    alone = counted(block(of(10, 1)), result(usage=of(10, 20), cost=0.25)).usage.so_far

    assert told.by_model["haiku"] == ModelUsage(input_tokens=100, output_tokens=3)
    assert (told.by_model[MODEL].output_tokens, told.is_estimated) == (20, True)
    expected = ModelUsage(input_tokens=10, output_tokens=20, cost_usd=0.25, num_turns=1)
    assert (alone.by_model, alone.is_estimated) == ({MODEL: expected}, False)


BEFORE = SessionCost(0.2, {MODEL: ModelUsage(input_tokens=23, output_tokens=43, cost_usd=0.2)})


def test_what_the_cli_had_counted_of_the_session_is_not_counted_again() -> None:
    """2.1.332 goes on from what it had counted: measured with a resume of 230 and 430 tokens."""
    told = {MODEL: reported(253, 473, 0.7)}
    goes_on = counted(block(of(230, 1)), result(cost=0.7, **told), before=BEFORE)
    begins_at_0 = counted(block(of(230, 1)), result(cost=0.5, **{MODEL: reported(230, 430, 0.5)}), before=BEFORE)
    less = counted(block(of(3, 1)), result(cost=0.1, **{MODEL: reported(3, 1, 0.1)}), before=BEFORE)
    hidden = counted(result(cost=0.9, **{MODEL: reported(123, 50, 0.9)}), before=BEFORE)

    for stats, counts, cost in (
        (goes_on, (230, 430, 0, 0), 0.5),
        (begins_at_0, (230, 430, 0, 0), 0.5),
        (less, (3, 1, 0, 0), 0.1),
        (hidden, (100, 7, 0, 0), 0.7),
    ):
        assert tokens(stats) == counts
        assert total_of(stats.usage.so_far.by_model).cost_usd == pytest.approx(cost)
        assert not stats.usage.so_far.is_estimated


def test_where_that_cannot_be_known_the_frames_count() -> None:
    stats = counted(
        block(of(230, 430)),
        result(cost=0.7, usage=of(230, 430), **{MODEL: reported(253, 473, 0.7)}),
        before=SessionCost(is_known=False),
    )

    assert tokens(stats) == (230, 430, 0, 0)
    assert total_of(stats.usage.so_far.by_model).cost_usd == 0
    assert stats.usage.so_far.is_estimated


def test_many_models_and_odd_names_stay_few_and_readable() -> None:
    odd = ["", " ", "\n", "a\x00b", '"', "ü" * 1000, "other", "\ud800"]
    names = {**{name: reported(1, 1, 0) for name in odd}, **{f"m{n}": reported(1, 1, 0) for n in range(300)}}
    frame = result(cost=0, turns=0) | {"modelUsage": names}

    run_stats = counted(frame)
    by_model = run_stats.usage.so_far.by_model

    assert len(by_model) <= 65
    assert len(run_stats.usage._names) <= 64, "what is remembered does not grow, either"
    assert total_of(by_model).input_tokens == len(names)
    assert all(len(name) <= 128 for name in by_model)
    json.dumps(sorted(by_model)).encode()
