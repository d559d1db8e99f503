"""Everything one child needs: a token that may be used, private files, an environment and a command line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
from msgspec.structs import replace

from agent_runtime.claude import invocation
from agent_runtime.claude.credential_env import CREDENTIALS, SHELL_PREFIX_VARIABLE
from agent_runtime.delivery.cli_options import depends_on_cli
from agent_runtime.delivery.delivery import Delivered, Identity
from agent_runtime.delivery.private_files import PrivateFiles
from agent_runtime.delivery.workspace_config import restrictions_for, starts_without_shell
from agent_runtime.execution.attempt_data import AttemptContext, AttemptSpec
from agent_runtime.model.task import CLI_FLAGS
from agent_runtime.process.directories import path_of
from agent_runtime.process.spawn import Command
from agent_runtime.secret.generations import Generation


class Launch:
    """
    Prepare one child; :meth:`release` undoes the preparation, whether or not the child was spawned.

    Attributes:
        generation: The newest generation that was read or delivered.
        delivered: The delivery of the token to the child; None until then.
        delivered_at: When the token was delivered, monotonic seconds.
    """

    def __init__(self, spec: AttemptSpec, context: AttemptContext) -> None:
        self.generation: Generation | None = None
        self.delivered: Delivered | None = None
        self.delivered_at = 0.0
        self._spec = spec
        self._context = context
        self._directory: int | None = None
        self._files = PrivateFiles(context.run_dir, spec.mark, context.settings.child_user)

    @property
    def relayed(self) -> Identity | None:
        """The child's identity at the relay; None: the child has a token itself, or nothing was delivered yet."""
        return None if self.delivered is None else self.delivered.relayed

    def command(self) -> Command:
        """
        Read and deliver the token, write the child's files, and put its command together.

        Raises:
            AgentRuntimeError: There is no token, it must not be used, a directory of the task cannot be opened, the CLI
                is not found, or a file cannot be written.
        """
        spec, context = self._spec, self._context
        settings, environ = context.settings, context.environ
        self.generation = context.secret.read()
        context.require_for_spawn(self.generation, spec.task.model, spec.execution_id)
        delivered = self.delivered = context.deliveries.deliver(self.generation)
        self.generation, self.delivered_at = delivered.generation, time.monotonic()
        context.redactor.add(delivered.generation.token)
        self._directory = context.workspaces.open(spec.task, spec.execution_id, spec.cwd)
        cwd = Path(path_of(self._directory))
        if delivered.by_port is not None and starts_without_shell(cwd, settings.config_dir):
            delivered = self.delivered = replace(delivered, variables=delivered.by_port)
        added = context.workspaces.added_directories(spec.task)
        child_environ = invocation.environment(
            environ,
            execution_id=spec.execution_id,
            config_dir=settings.config_dir,
            delivered=delivered.variables,
            background_seconds=settings.background_timeout or settings.timeout,
            as_root=settings.child_user is None and os.geteuid() == 0,
            trace=spec.task.trace,
            task_variables={**(spec.task.env or {}), "PWD": str(cwd)},
        )
        restrictions, restricting_arguments = restrictions_for(cwd, CREDENTIALS.keys() & delivered.variables)
        settings_file = invocation.write_settings(self._files.write, delivered.variables, child_environ, restrictions)
        mcp_file = None
        if spec.task.mcp_config is not None:
            mcp_file = self._files.write("mcp.json", msgspec.json.encode(spec.task.mcp_config))
        agents_file, options = None, context.known_options() if depends_on_cli(spec.task) else None
        if spec.task.agents and options is not None and options.takes_agents_file:
            agents_file = self._files.write("agents.json", msgspec.json.encode(spec.task.agents))
        argv = (
            *invocation.resolve(settings.claude, child_environ.get("PATH")),
            *invocation.arguments(
                spec.task, spec.session, settings_file=settings_file, mcp_file=mcp_file, agents_file=agents_file
            ),
            *(options.further(spec.task) if options is not None else ()),
            *restricting_arguments,
            *(f"{CLI_FLAGS['add_dirs']}={path}" for path in added),
        )
        return Command(
            argv=argv,
            env=child_environ,
            cwd=cwd,
            user=settings.child_user,
            mark=spec.mark,
            directory=self._directory,
            needs=(*self._files.directories, *(path.parent for path in _shell_prefix(delivered))),
        )

    def release(self) -> None:
        """Remove the child's files and report that it no longer uses its token."""
        if self.delivered is not None:
            self._context.deliveries.release(self.delivered)
        if self._directory is not None:
            os.close(self._directory)
        self._files.remove()


def _shell_prefix(delivered: Delivered) -> tuple[Path, ...]:
    """Return the path of the relay's program through which the CLI runs its tools, if there is one."""
    return tuple(Path(value) for name, value in delivered.variables.items() if name == SHELL_PREFIX_VARIABLE)
