"""Every error that streamfold raises on purpose, in one tree.

::

    StreamfoldError
    ├── EventError            an event cannot be folded by this policy; the only error that skips it
    ├── InvalidEvent          an input that is not an acceptable event (HTTP 422, Kafka: dead letter)
    ├── EventIdReused         same source and id, other content (HTTP 409)
    ├── ConfigError           settings or policy configuration are wrong; says which key and what is near
    │   └── WrongBase         weights of different bases (features, layers, starts) would be averaged
    ├── PluginError           a plugin cannot be loaded or declares something twice
    ├── VersionError          a version cannot be promoted, rolled back to, skipped in or retired
    │   ├── VersionConflict   its slot or state does not allow it, or it may never be served (erased-from)
    │   ├── NotCaughtUp       it has not folded as far as what it would replace
    │   ├── OutOfReach        events that it would fold have left the log, and are in no archive
    │   └── GateFailed        a rule of the ``promotion_gate`` hook failed; ``force`` overrides it
    ├── InvalidAnswer         a model's answer to one input is of no use, however often it is asked
    ├── BackendUnavailable    a model cannot be asked just now (down, rate limit, budget); says when to try again
    ├── NeedsRebuild          a policy cannot forget a subject exactly; it must be folded afresh
    ├── StoreError            a store was used wrongly (wrong type, dimension, key)
    │   └── StoreFull         a bounded store with ``on_full="refuse"`` has no room
    ├── CorruptCheckpoint     a checkpoint's files do not match their manifest; refold from the ledger
    ├── NewerCheckpoint       a checkpoint of a newer streamfold: leave the group to the processes that can read it
    └── LedgerError           the ledger refused or could not be reached
        ├── Fenced            this writer's lease or position was taken over; drop warm state
        ├── IntakeConflict    another consumer has moved this intake's position
        ├── ArchiveMissing    events have left the log, and the archive's file that has them is not there
        ├── LedgerBusy        a second process holds the embedded ledger
        └── LedgerUnavailable the database cannot be reached just now; back off and retry
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


class StreamfoldError(Exception):
    """Base of all errors raised on purpose."""


class EventError(StreamfoldError):
    """The event cannot be folded by this policy: it is skipped for this instance and kept as a dead letter.

    Parameters
    ----------
    is_limit : a bound that the policy was given refuses it. However many are refused so, the policy is in order: such
        skips do not add up to ``fold.max_skips``.
    """

    def __init__(self, detail: str, *, code: str = "event-error", is_limit: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.is_limit = is_limit


class InvalidEvent(StreamfoldError):
    """An input that cannot become an event.

    Parameters
    ----------
    code : the contract's problem code: ``malformed``, ``invalid-event``, ``invalid-value``, ``unknown-field``,
        ``unknown-type`` or ``too-large``.
    detail : what is wrong, where, and what to do.
    pointer : JSON pointer (RFC 6901) to the offending member.
    """

    def __init__(self, code: str, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.pointer = pointer


class EventIdReused(StreamfoldError):
    """The same ``source`` and ``id`` came before with another content."""


class ConfigError(StreamfoldError):
    """Settings or a policy's configuration are wrong."""


class WrongBase(ConfigError):
    """What a policy would average its weights with has another base: the average would mean nothing."""


class PluginError(StreamfoldError):
    """A plugin cannot be loaded, or registers a name that is taken."""


class VersionError(StreamfoldError):
    """A policy's version cannot take the role asked for."""


class VersionConflict(VersionError):
    """Slots or state do not allow it now, or ever; ``rules``: those that it fails, as plain values."""

    def __init__(self, detail: str, rules: Sequence[Mapping[str, object]] = ()) -> None:
        super().__init__(detail)
        self.rules = list(rules)


class NotCaughtUp(VersionError):
    """The version has not folded far enough; promoting it would undo what was served."""

    def __init__(self, detail: str, *, watermark: int, position: int) -> None:
        super().__init__(detail)
        self.watermark = watermark
        self.position = position


class OutOfReach(VersionError):
    """It would have to be folded from events that are gone; ``rebuildable_from``: the position that is reached."""

    def __init__(self, detail: str, *, rebuildable_from: int) -> None:
        super().__init__(detail)
        self.rebuildable_from = rebuildable_from


class GateFailed(VersionError):
    """The promotion gate refused; ``rules`` are all that were asked, as plain values."""

    def __init__(self, detail: str, rules: Sequence[Mapping[str, object]]) -> None:
        super().__init__(detail)
        self.rules = list(rules)


class InvalidAnswer(StreamfoldError):
    """A model refused an input, or answered what cannot be used; asking again would not help."""


class BackendUnavailable(StreamfoldError):
    """A model cannot be asked just now: wait ``retry_after_s``. ``suspect``: it may be this input at which it fails."""

    def __init__(self, detail: str, *, retry_after_s: float = 1.0, suspect: bool = False) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.suspect = suspect


class NeedsRebuild(StreamfoldError):
    """A policy cannot forget a subject exactly: core folds a new instance without the subject's events."""


class StoreError(StreamfoldError):
    """A store was used wrongly."""


class StoreFull(StoreError):
    """A store that refuses at its bound has no room left."""


class CorruptCheckpoint(StreamfoldError):
    """A checkpoint's files do not match their manifest."""


class NewerCheckpoint(StreamfoldError):
    """A newer version of streamfold wrote this checkpoint; it is whole, and must not be folded afresh."""


class LedgerError(StreamfoldError):
    """The ledger refused, or could not be reached."""


class Fenced(LedgerError):
    """Another writer owns this group now: drop the warm stores and every lease."""


class IntakeConflict(LedgerError):
    """Another consumer has moved this intake's position: seek to the ledger's offset."""


class ArchiveMissing(LedgerError):
    """Events have left the log, and no file of the archive has them: they cannot be folded again."""


class LedgerBusy(LedgerError):
    """Another process holds the embedded ledger."""


class LedgerUnavailable(LedgerError):
    """The database cannot be reached just now; nothing was written, or whether it was is unknown: retry."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest valid word, or a list of the valid ones."""
    choices = sorted(valid)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(choices)}" if choices else ""
