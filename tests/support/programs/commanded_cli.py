"""A CLI with commands of its own, which notes beside itself what it was told."""

import json
import os
import pathlib
import sys

message = sys.stdin.read()
seen = pathlib.Path(__file__).with_name("seen.jsonl")
if os.environ.get("AGENT_RUNTIME_EXECUTION_ID", "reload-check") != "reload-check":  # the reload check runs it, too
    with seen.open("a") as file:
        file.write(json.dumps({"message": message, "argv": sys.argv[1:]}) + "\n")


def say(**frame):
    print(json.dumps({"session_id": "7b0b4a4e-0000-4000-8000-000000000001", **frame}), flush=True)


say(type="system", subtype="init", permissionMode="bypassPermissions", model="m", claude_code_version="2.1.332")
word = message.split()[0] if message.startswith("/") else ""
if word in ("/login", "/compact", "/cost", "/clear", "/nobody"):
    say(
        type="result",
        subtype="success",
        is_error=False,
        num_turns=0,
        duration_api_ms=0,
        result={"/cost": "It cost nothing.", "/nobody": "Unknown command: /nobody"}.get(word, ""),
    )
elif word == "/old":
    say(type="user", message={"role": "user", "content": "<local-command-stdout>It was.</local-command-stdout>"})
    say(type="result", subtype="success", is_error=False, num_turns=3, duration_api_ms=0, result="")
elif word == "/fork":
    say(type="system", subtype="task_started", task_id="t1", task_type="local_agent")
    say(type="system", subtype="task_notification", task_id="t1", status="completed", ambient=True)
    say(type="result", subtype="success", is_error=False, num_turns=0, duration_api_ms=0, result="Forked.")
elif word == "/fails":
    say(type="result", subtype="success", is_error=True, num_turns=0, duration_api_ms=0, result="It cannot be done.")
else:
    content = [{"type": "text", "text": "Heard."}]
    say(type="assistant", message={"id": "m1", "model": "m", "content": content})
    say(type="result", subtype="success", is_error=False, num_turns=1, duration_api_ms=5, result="Heard: " + message)
