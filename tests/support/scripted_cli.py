"""
The stand-in of ``claude`` that plays scripts, for what neither the real CLI nor the API can be made to do.

A plain prompt is treated as :mod:`agent_runtime.standins.scripted_cli` treats it. A prompt that is a JSON object with a
key ``script`` is played instead:
``{"script": [{"do": "init"}, {"do": "assistant", "text": "Hello."}, {"do": "result"}]}``.
Further keys: ``permission_mode`` (what init says), ``keep_session`` (false: a resume finds no conversation),
``exit_code``.

==============  ==================================================================  ====================================
step            fields (with their defaults)                                        does
==============  ==================================================================  ====================================
``init``        ``fields`` {}                                                       prints ``system/init``
``frame``       ``frame``                                                           prints it, with session id and UUID
``assistant``   ``text``, ``usage`` {}                                              prints a model's text
``partial``     ``text``                                                            prints a ``stream_event``
``tool_use``    ``command``, ``name`` Bash, ``id``                                  prints it, runs nothing
``tool_result`` ``content``, ``is_error`` false, ``id``                             prints it, ran nothing
``result``      ``text`` Done., ``is_error`` false, ``fields`` {}                   prints ``result``, goes on
``retry``       ``status``, ``error``, ``attempt`` 1, ``delay_seconds`` 0.5         prints ``api_retry``
``give_up``     ``text``, ``error``, ``status``, ``kind``                           prints synthetic assistant + result
``rate_limit``  ``status``, ``limit_type``, ``resets_at``                           prints ``rate_limit_event``
``background``  ``tasks`` (names of the pending ones)                               prints ``background_tasks_changed``
``write``       ``text`` or ``base64``, ``stream`` stdout, ``newline`` true,        prints bytes, in one write or cut at
                ``cuts`` [], ``byte_by_byte`` false, ``pause_seconds`` 0            offsets, with a pause after each
``api_error``   ``status`` 401, ``kind``, ``message``, ``attempt`` 1, ``error``,    prints the CLI's exact line on
                ``frame`` true                                                      stderr, and ``api_retry``
``request``     ``prompt`` "Go on.", ``result`` false                               one turn with the API, tools too
``tool``        ``command``, ``timeout_seconds`` 120, ``frames`` true               runs it as the Bash tool does
``sleep``       ``seconds``                                                         waits
``hang``        ``seconds`` 120                                                     waits
``wait_file``   ``path``, ``timeout_seconds`` 120                                   waits until it exists
``exit``        ``code`` 0                                                          leaves at once
``kill``        ``signal`` SIGKILL                                                  dies of it
``touch``       ``path``, ``text`` "ready {pid}"                                    appends a line
``report``      ``path``                                                            writes what it was given: argv,
                                                                                    environment, token's fingerprint, …
``flood``       ``bytes``, ``stream`` stdout, ``bytes_per_second`` 0 (no limit),    prints filler; ``line_bytes`` 0: one
                ``line_bytes`` 4096                                                 line without an end
``lookalike``   ``of`` all (``model_text``, ``tool_result``, ``subagent``,          prints what is no evidence
                ``mcp_stderr``, ``mcp_needs_auth``, ``good_result``)
``forge``       ``stream`` stderr, ``text``                                         a tool writes the refusal line, or
                                                                                    frame, to the CLI's own stream
``wait_signal`` ``signal`` SIGUSR1, ``timeout_seconds`` 120, ``ready_file``         waits; the signal does nothing else
``stubborn``    ``signals`` [SIGINT, SIGTERM]                                       ignores them from here on
``stop``        ``seconds`` 120                                                     stops itself (SIGSTOP)
``close``       ``stream`` (stdin, stdout, stderr)                                  closes it
``spawn``       ``kind`` plain (``setsid``, ``double_fork``, ``empty_env``,         starts children; ``count``: members
                ``tree``, ``runaway``), ``seconds`` 120, ``count`` 0,               of a tree (6), forks of a runaway
                ``hold_pipes`` false, ``ignore_signals`` false, ``pid_file``
``pids``        ``path``                                                            writes ``{pid, children}``
==============  ==================================================================  ====================================

Any step may have ``when`` (``first``: not in a resumed process, ``resumed``: only there) and ``times``.

``--resume`` goes on with the session's first step that has not begun (a ``request`` is repeated unless it was
answered), or, with a new script as prompt, with that. A script that is wrong is told on stderr and exits 2.

Environment: ``SCRIPTED_CLI_SCRIPT`` (a file with the script; stdin is then never read), and that of
:mod:`agent_runtime.standins.scripted_cli`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # It is run by its path, as a child has another working directory.
    sys.path.append(str(Path(__file__).parents[2]))
    from tests.support.scripted.program import run

    run()
