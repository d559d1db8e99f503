"""What an attempt has before its leader, so that nobody waits for it later."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agent_runtime import keeper
from agent_runtime.containment import Kind
from agent_runtime.living import living
from agent_runtime.nursery import nursery

if TYPE_CHECKING:
    from typing import Self

    from agent_runtime.nursery import Called


class Cradle:
    """
    What an attempt needs before its leader: it counts as living, and its keeper is on the way.

    Entered before the command is known, it saves the time that a keeper takes to be forked. What
    :func:`agent_runtime.process.spawn` has not made a child of is given back when it is left.

    Attributes:
        has_child: The child leaves the living when it is closed.
    """

    def __init__(self, mark: str, kind: Kind = Kind.SCAN) -> None:
        self.kind = kind
        self.kin = living.enter(mark)
        self._called: Called | None = None
        with contextlib.suppress(OSError):  # whoever needs it tries again, and is told why
            self._called = self._call()
        self.has_child = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._called is not None:
            self._called.close()
            self._called = None
        if not self.has_child:
            living.leave(self.kin)

    def keeper(self) -> Called:
        """
        Return the keeper that waits for its errand, once.

        Raises:
            OSError: There can be none for now.
        """
        called, self._called = self._called, None
        return called or self._call()

    def _call(self) -> Called:
        return nursery.call(keeper.NAMESPACE if self.kind is Kind.PIDNS else keeper.PLAIN)
