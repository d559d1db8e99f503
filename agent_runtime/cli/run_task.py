"""``agent-runtime run``: submit a task, show its events, and exit with a code for its outcome."""

from __future__ import annotations

import argparse
import sys
import uuid
from dataclasses import dataclass
from typing import Any

from agent_runtime.cli.connection import connect
from agent_runtime.cli.exit_codes import EXIT_CANCELLED, EXIT_SUCCESS
from agent_runtime.cli.output import JsonLines, TextOutput
from agent_runtime.cli.pages import pages
from agent_runtime.client import Answer, ClientError, RequestRefused, SyncAgentClient

MAX_RESUMES = 3


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character must not end the command
            stream.reconfigure(errors="backslashreplace")
    output = JsonLines(sys.stdout) if options.json else TextOutput(sys.stdout)
    try:
        with connect(options, options.patience) as client:
            prompt = _prompt(options.prompt)
            _explain_waiting(client, options.patience)
            execution_id = options.execution_id or str(uuid.uuid4())
            run = TaskRun(client, execution_id, prompt, _fields(options), output, partial=options.follow)
            return run.submit_only() if options.detach else run.follow_to_end()
    except ClientError as error:
        output.failed(error)
        raise


@dataclass
class TaskRun:
    """One use of the command: the submission of a task, and the output of its events."""

    client: SyncAgentClient
    execution_id: str
    message: str
    fields: dict[str, Any]
    output: JsonLines | TextOutput
    partial: bool = False
    position: int = 0
    resumes: int = 0

    def submit_only(self) -> int:
        """Submit the task, print the execution's id, and return the exit code."""
        self._submit()
        sys.stdout.write(self.execution_id + "\n")
        return EXIT_SUCCESS

    def follow_to_end(self) -> int:
        """Submit the task and show its events to the end; Ctrl-C cancels it, a second Ctrl-C does not wait for that."""
        try:
            self._submit()
            answer = self._follow()
        except KeyboardInterrupt:
            return self._terminate()
        return self._show(answer)

    def _terminate(self) -> int:
        _print("ending the execution; Ctrl-C again leaves it to itself")
        try:
            self.client.terminate(self.execution_id)
            return self._show(self._follow())
        except ClientError as error:
            if error.error_class != "not_found":
                raise
            _print("it had not been admitted")
        except KeyboardInterrupt:
            _print(f"left to itself: execution {self.execution_id}")
        return EXIT_CANCELLED

    def _show(self, answer: Answer) -> int:
        self.output.answer(answer)
        return EXIT_CANCELLED if answer.is_cancelled else EXIT_SUCCESS

    def _submit(self) -> None:
        self.client.submit(self.message, execution_id=self.execution_id, **self.fields)

    def _follow(self) -> Answer:
        """Show all events until there is an answer; resume the execution if a shutdown interrupted it."""
        while True:
            for event in self.client.stream(self.execution_id, after=self.position, partial=self.partial):
                if event.name == "message" and event.id is not None:
                    self.position = event.id
                self.output.event(event)
            try:
                return self.client.result(self.execution_id)
            except ClientError as error:
                if error.error_class != "interrupted" or self.resumes == MAX_RESUMES:
                    raise
            self.resumes += 1
            _print("a shutdown interrupted it: resuming")
            self._submit()


def _prompt(prompt: str) -> str:
    is_read = prompt == "-"
    if is_read:
        if sys.stdin.isatty():
            _print("reading the task: end it with Ctrl-D")
        try:
            prompt = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            raise RequestRefused.because("invalid_request", "what came on stdin must be text in UTF-8") from None
    if not prompt.strip():
        where = "nothing came on stdin" if is_read else "PROMPT is empty"
        raise RequestRefused.because("invalid_request", f"{where}: give the task in words, or - and the task on stdin")
    return prompt


def _explain_waiting(client: SyncAgentClient, patience_seconds: float) -> None:
    """Print why `run` waits: no supervisor answers, or the supervisor turns new tasks away."""
    try:
        obstacle: object = "the supervisor drains" if client.health().draining else None
    except ClientError as error:  # the task's own request reports other errors
        obstacle = error if error.error_class == "unreachable" else None
    if obstacle and patience_seconds:
        _print(f"{obstacle}; trying for {patience_seconds:g} s (--patience)")


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the task that the options set."""
    given = {name: value for name in pages()["run"].fields if (value := getattr(options, name)) is not None}
    return given | {name: dict(given[name]) for name in ("env", "labels") if name in given}


def _print(text: str) -> None:
    sys.stderr.write(f"agent-runtime: {text}\n")
    sys.stderr.flush()
