"""The hooks through which plugins register and observe (pluggy).

The hot path is plain method calls on what was registered; hooks run at start, after commits and on failures. A plugin
is a module named in the entry-point group ``streamfold`` and enabled by the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from streamfold.core.events.model import EventType, NewEvent
    from streamfold.core.ledger.abc import Instance
    from streamfold.core.policy import Backend, Policy

PROJECT = "streamfold"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule:
    """One rule of a promotion gate, and what it found: ``value`` against ``limit``.

    ``undecided``: it did not pass, and may when more has come to judge by.
    """

    rule: str
    passed: bool
    value: float | None = None
    limit: float | None = None
    detail: str = ""
    undecided: bool = False


class Hooks:
    """Hook specifications; each is documented in docs/reference/hooks.md."""

    @hookspec
    def register_policies(self) -> list[type[Policy]]:  # type: ignore[empty-body]  # a specification has no body
        """Return the policy classes that the plugin offers."""

    @hookspec
    def register_backends(self) -> list[Backend]:  # type: ignore[empty-body]  # a specification has no body
        """Return backends: encoder, chunker, extractor, generator, keywords, summarizer, reranker."""

    @hookspec
    def register_event_types(self) -> list[EventType]:  # type: ignore[empty-body]  # a specification has no body
        """Return further event types with their data classes."""

    @hookspec
    def register_decoders(self) -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]  # a specification
        """Return Kafka decoders by name: ``(record, mapping) -> CloudEvent``, or None for what means nothing."""

    @hookspec(historic=True)
    def configured(self, settings: Any) -> None:
        """The settings are read and everything is registered."""

    @hookspec(firstresult=True)
    def refuse_event(self, workspace: str, event: NewEvent) -> str | None:
        """Return a reason to refuse an event before it is logged, or None to let it pass."""

    @hookspec
    def committed(
        self, workspace: str, group: str, watermark: int, commit_no: int, events: int, seconds: float
    ) -> None:
        """A group committed; ``seconds``: what the ledger's transaction took."""

    @hookspec
    def failed(self, workspace: str, group: str, policy: str, position: int | None, error: BaseException) -> None:
        """A group was halted by an error."""

    @hookspec
    def promotion_gate(  # type: ignore[empty-body]  # a specification has no body
        self, workspace: str, candidate: Sequence[Instance], live: Sequence[Instance]
    ) -> Sequence[GateRule]:
        """Judge a shadow before it is promoted: one ``GateRule`` each; one that failed refuses, unless forced."""

    @hookspec
    def closing(self) -> None:
        """The process is about to stop, gracefully."""
