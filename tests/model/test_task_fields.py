"""The fields of a task that are options of the CLI: what is taken, what is refused and named, and the digest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_runtime.errors import InvalidRequest, is_reserved
from agent_runtime.model.task import Task
from agent_runtime.model.task_reading import ARGUMENT_LIMIT_BYTES, parse

SESSION = "5b1f3a5e-9a4c-4a5e-8f49-0a5d7c1e2b3f"
REVIEWER = {"description": "Reviews", "prompt": "Review."}
OBJECT = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def task(**fields: Any) -> Task:
    return parse(json.dumps({"message": "x", **fields}).encode(), strict=True)[0]


GOOD: list[dict[str, Any]] = [
    {"fallback_model": "claude-haiku-4-5,claude-opus-4-1"},
    {"fallback_model": "a,b:c/d,sonnet[1m]"},
    {"cwd": "a", "create_cwd": True},
    {"effort": "xhigh"},
    {"append_system_prompt": "--model=evil\n\t\N{SNOWMAN}"},
    {"system_prompt": "same", "append_system_prompt": "same"},
    {"system_prompt": "", "append_system_prompt": "x"},
    {"replace_system_prompt": " "},
    {"permission_mode": "manual"},
    {"tools": []},
    {"tools": ["Bash", "Bash", "mcp__a-b"]},
    {"max_budget_usd": 1e-9},
    {"max_budget_usd": 1_000_000},
    {"json_schema": {}},
    {"json_schema": OBJECT},
    {
        "json_schema": {
            "$defs": {"a": {"items": [{"type": ["string", "null"]}, True]}},
            "anyOf": [{"$ref": "#"}],
        }
    },
    {"agents": {}},
    {"agents": {"rev": REVIEWER | {"tools": ["Read"], "model": "haiku", "later": 1}}, "agent": "rev"},
    {"agent": "plugin:agent"},
    {"resume_session_id": SESSION, "fork_session": True},
    {"strict_mcp_config": True, "setting_sources": []},
    {"setting_sources": ["user", "local"]},
]


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_a_task_may_have(fields: dict[str, Any]) -> None:
    assert task(**fields)


PROMPT: list[Any] = ["a\x00", 3, ["x"], "\N{SNOWMAN}" * 40_001, "x" * (ARGUMENT_LIMIT_BYTES + 1)]
BAD: dict[str, list[Any]] = {
    "fallback_model": [
        "",
        ",",
        "a,",
        ",a",
        "a,,b",
        "a, b",
        "a,--model",
        "a,b\n",
        "a," * 128 + "b",
        "--model",
        "a b",
        "a\x00",
        "x" * 257,
        3,
        ["a"],
    ],
    "effort": ["", "ultra", "LOW", 3, ["low"], "--effort", "sk-ant-oat01-not-repeated"],
    "append_system_prompt": PROMPT,
    "replace_system_prompt": [*PROMPT, ""],
    "permission_mode": ["", "delegate", "bypasspermissions", "--plan", True],
    "tools": ["Bash", [""], ["a,b"], ["--model"], ["Bash(git *)"], ["a\n"], ["B"] * 257, [3]],
    "max_budget_usd": [0, -1, "1", True, 1_000_001, 1e300, [1]],
    "json_schema": [
        *([], "{}", 3, {"type": "string"}, {"type": ["object"]}, {"type": "thing"}),
        *({"properties": {"a": {"type": name}}} for name in ("not-repeated - at y", "x - at not-repeated", "`$.x`")),
        *({"properties": []}, {"properties": {"a": 3}}, {"not": {"type": "text"}}, {"items": {"type": [1]}}),
        *({"required": "a"}, {"required": [1]}, {"enum": 1}, {"items": 1}, {"anyOf": {}}, {"anyOf": [3]}, {"not": []}),
        *({"$defs": {"a": {"allOf": 1}}}, {"description": "x" * ARGUMENT_LIMIT_BYTES}),
        *({keyword: {"a": 3}} for keyword in ("patternProperties", "$defs", "definitions", "dependentSchemas")),
        *({keyword: [3]} for keyword in ("allOf", "oneOf", "prefixItems", "items")),
        *({keyword: 3} for keyword in ("additionalProperties", "contains", "if", "then", "else", "propertyNames")),
    ],
    "images": [
        *([{"media_type": "image/bmp", "data": "AAAA"}], [{"media_type": "image/png", "data": "not-repeated"}]),
        [{"media_type": "image/png", "data": 5}],
        *([{"media_type": "image/png"}], [{"media_type": "image/png", "data": ""}] * 101),
    ],
    "agents": [
        *([], "rev", {"rev": 3}, {"": REVIEWER}, {"a,b": REVIEWER}, {"--a": REVIEWER}),
        *({"rev": one} for one in ({}, {"description": "x"}, REVIEWER | {"prompt": " "}, {**REVIEWER, "prompt": 1})),
        {f"a{n}": REVIEWER for n in range(65)},
        {"rev": REVIEWER | {"prompt": "x" * ARGUMENT_LIMIT_BYTES}},
    ],
    "agent": ["", "--agent", "a b", "a,b", "a\x00", 3, "x" * 129, ["rev"]],
    "fork_session": [1, "true", [], True],
    "create_cwd": [1, "true", [], True],
    "strict_mcp_config": [1, "true", []],
    "setting_sources": ["user", ["managed"], ["user,local"], ["user"] * 4, [""], [None]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in BAD for value in BAD[name]], ids=lambda value: str(value)[:40]
)
def test_a_value_that_cannot_be_used_is_told_by_the_fields_name_and_not_repeated(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as raised:
        task(**{name: value})

    text = str(raised.value)
    assert text.startswith(f"{name}: ")
    assert not is_reserved(text)
    assert "not-repeated" not in text


def test_a_type_that_a_schema_cannot_have_is_told_with_its_place_and_the_types_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"json_schema: `\$\.properties\[\.\.\.\]\.type`: must be one of array, "):
        task(json_schema={"properties": {"a": {"type": "x - at y"}}})


def test_a_picture_is_stored_as_it_was_sent() -> None:
    """An earlier version stored and compared it so, with more padding than is needed, too."""
    for data in ("AAAA=", "aGVsbG9="):
        images = task(images=[{"media_type": "image/png", "data": data}]).images
        assert images is not None
        assert [image.data for image in images] == [data]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"message":"x","max_budget_usd":1e400}', "max_budget_usd"),
        (b'{"message":"x","json_schema":{"minimum":-1e999}}', "json_schema"),
        (b'{"message":"x","max_budget_usd":NaN}', "the body is not JSON"),
        (b'{"message":"x","agent":"\\udc00"}', "the body is not JSON"),
        (b'{"message":"x","unknown":1e400}', "the body holds a number"),
    ],
)
def test_a_number_that_no_double_holds_is_told(body: bytes, names: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{names}"):
        parse(body, strict=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"system_prompt": "a", "append_system_prompt": "b"},
        {"model": "m", "fallback_model": "m"},
        {"resume_session_id": SESSION, "fresh_session": True, "fork_session": True},
    ],
)
def test_fields_that_contradict_one_another_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"^(append_system_prompt|fallback_model|fresh_session): "):
        task(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"permission_mode": "bypassPermissions", "fork_session": False, "strict_mcp_config": False, "agents": {}},
        dict.fromkeys(Task.__struct_fields__[1:]),
    ],
)
def test_a_field_at_its_default_does_not_change_the_digest(fields: dict[str, Any]) -> None:
    assert task(**fields).digest == task().digest


def test_each_field_changes_the_digest_where_it_is_work() -> None:
    named = [task(resume_session_id=SESSION, **one) for one in GOOD if "resume_session_id" not in one]
    forked = next(one for one in GOOD if "fork_session" in one)
    digests = {one.digest for one in named} | {task(**forked).digest}

    assert len(digests) == len(GOOD)  # no agents ask for nothing
    assert task(tools=[]).digest != task().digest
    assert task(setting_sources=[]).digest != task().digest


def test_both_names_of_the_appended_prompt_are_the_same_work() -> None:
    assert task(append_system_prompt="x").digest == task(system_prompt="x").digest
    assert task(append_system_prompt="x").system_prompt == "x"
    assert task(append_system_prompt="", system_prompt="x").system_prompt == "x"
