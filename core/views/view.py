"""Follow the feed: each group's commits applied in order to read-only stores, and what was deleted hidden at once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import CorruptCheckpoint, LedgerUnavailable
from streamfold.core.events.model import Subject
from streamfold.core.fold.stores import GroupStores, recover
from streamfold.core.fold.tools import InstanceTools
from streamfold.core.ledger.abc import GroupState
from streamfold.core.policy import ReadOnly, Tools
from streamfold.core.views.lock import ReadWriteLock

log = logging.getLogger("streamfold.views")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What an answer was made from: lowest watermark of the groups that answered, versions, what is degraded."""

    position: int
    age_ms: int
    policies: dict[str, str]
    degraded: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"position": self.position, "age_ms": self.age_ms, "policies": self.policies, "degraded": self.degraded}


class MemberView:
    """What a policy's ``serve`` gets: its stores by name, its backends, other live policies."""

    def __init__(self, workspace: WorkspaceView, group: GroupView, runtime: Runtime) -> None:
        self._workspace = workspace
        self._group = group
        self.runtime = runtime
        self.tools: Tools = InstanceTools(workspace.context, workspace.name, runtime, keep=False)
        self.server: Any = None

    def __getitem__(self, name: str) -> Any:
        return self._group.stores.by_runtime[self.runtime.key][name]

    def of(self, policy: str) -> ReadOnly:
        return self._workspace.member(policy)


class GroupView:
    """One group's stores at a commit."""

    def __init__(self, workspace: WorkspaceView, group: Group) -> None:
        self.workspace = workspace
        self.group = group
        self.lock = ReadWriteLock()
        self.commit_no = 0
        self.watermark = 0
        self.stores: GroupStores
        self.members: dict[str, MemberView] = {}
        self.load()

    def load(self) -> None:
        """(Re)load from the newest checkpoint and the feed; retried when a newer checkpoint is written meanwhile."""
        context, name = self.workspace.context, self.workspace.name
        first = context.ledger.group(name, self.group.name).checkpoint
        for attempt in range(5):
            stores = GroupStores(context, self.group, side="view")
            try:
                commit_no, watermark = recover(context, name, self.group, stores)
                break
            except CorruptCheckpoint as error:
                stores.close()
                if attempt == 4:
                    raise
                if attempt == 3 and context.settings.is_embedded:
                    self._refold(first, error)
                time.sleep(0.1 * (attempt + 1))
            except BaseException:
                stores.close()
                raise
        with self.lock.write():
            old = getattr(self, "stores", None)
            self.stores, self.commit_no, self.watermark = stores, commit_no, watermark
            self.members = {r.instance.name: MemberView(self.workspace, self, r) for r in self.group.runtimes}
            for member in self.members.values():
                member.server = member.runtime.policy.serve(member)
        if old is not None:
            old.close()

    def _refold(self, first: str | None, error: CorruptCheckpoint) -> None:
        """Have the group folded afresh from the log, unless a newer checkpoint was written meanwhile.

        Only in the one process of the embedded shape: elsewhere the fold decides, since a view's host may merely not
        see the files.
        """
        ledger, name = self.workspace.context.ledger, self.workspace.name
        if first is not None and ledger.group(name, self.group.name).checkpoint == first:
            log.error("checkpoint_corrupt group=%s: %s; folding afresh from the log", self.group.name, error)
            ledger.reset_group(name, self.group.name, watermark=self.group.start_seq)

    def apply(self, commits: Iterable[Any], mark: int) -> None:
        """Apply commits in order, then move the watermark to ``mark`` when everything up to it is applied."""
        with self.lock.write():
            for commit in commits:
                if commit.commit_no <= self.commit_no:
                    continue
                if commit.commit_no != self.commit_no + 1:
                    raise CorruptCheckpoint(
                        f"feed of {self.group.name} jumps from {self.commit_no} to {commit.commit_no}"
                    )
                self.stores.apply(commit)
                self.commit_no, self.watermark = commit.commit_no, commit.watermark
            self.watermark = max(self.watermark, mark)


class WorkspaceView:
    """All groups of a workspace that this process serves."""

    def __init__(self, context: Context, name: str, samples: Callable[[str, float], None]) -> None:
        self.context = context
        self.name = name
        self.groups: dict[str, GroupView] = {}
        self.changed = threading.Condition()
        self.listeners: list[Callable[[], None]] = []
        self.head = 0
        self.states: dict[str, GroupState] = {}
        self.states_at = 0.0
        self.followed_at = 0.0
        self.deleted: dict[tuple[str, str], int] = {}
        self._deletions_read = 0
        self._pruned = 0
        self._unforgotten: dict[tuple[str, str], set[str]] = {}
        self._held_after: dict[tuple[str, str], set[str]] = {}
        self._samples = samples
        self._lock = threading.Lock()
        self.accepted: deque[tuple[int, float, frozenset[str]]] = deque(maxlen=20_000)
        """(position, monotonic time, types) of what this process appended, to measure event → visible."""
        context.pin(name)
        self.follow()

    # -- following ------------------------------------------------------------------------------------------------
    def follow(self) -> bool:
        """Apply what is new; True when something was. Called by the follower thread and at start."""
        with self._lock:
            return self._follow()

    def _follow(self) -> bool:
        ctx = self.context
        if time.monotonic() - self.states_at > 1.0:
            ctx.groups(self.name, fresh=True)
            self.states = {s.group: s for s in ctx.ledger.groups(self.name)}
            self.states_at = time.monotonic()
        held = self._held() if self._unforgotten else {}  # before the marks: what is not in it now is loaded below
        head = ctx.ledger.head(self.name)
        marks = ctx.ledger.watermarks(self.name)
        for group in ctx.groups(self.name):
            if group.name in marks:
                have = self.groups.get(group.name)
                if have is None:
                    self.groups[group.name] = GroupView(self, group)
                elif have.group is not group:
                    have.group = group
        for gone in set(self.groups) - {g.name for g in ctx.groups(self.name)}:
            del self.groups[gone]
        moved = {n: v for n, v in self.groups.items() if n in marks and marks[n][1] > v.commit_no}
        reset = [v for n, v in self.groups.items() if n in marks and marks[n][1] < v.commit_no]
        for view in reset:
            view.load()
        feed: dict[str, list[Any]] = {}
        if moved:
            for commit in ctx.ledger.feed(self.name, {n: v.commit_no for n, v in moved.items()}):
                feed.setdefault(commit.group, []).append(commit)
        # Deletions are read after the marks and before the commits are applied: what was deleted is hidden at once.
        changed = self._read_deletions(min((v.watermark for v in self.groups.values()), default=0), head)
        for name, view in self.groups.items():
            if name not in marks:
                continue
            watermark, commit_no = marks[name]
            commits = feed.get(name, [])
            if name in moved and not commits:  # a checkpoint dropped what this view lacks
                view.load()
                changed = True
                continue
            reached = commits[-1].commit_no if commits else view.commit_no
            mark = watermark if reached >= commit_no else 0
            if commits or mark > view.watermark:
                try:
                    view.apply(commits, mark)
                except CorruptCheckpoint:
                    view.load()
                changed = True
        for subject, groups in self._held_after.items():
            held.setdefault(subject, set()).update(groups)
        self._unforgotten = held
        self.head = head
        self.followed_at = time.monotonic()
        if changed:
            self._measure()
            with self.changed:
                self.changed.notify_all()
            for listener in list(self.listeners):
                listener()
        return changed

    def _read_deletions(self, lowest: int, head: int) -> bool:
        """Learn of new deletions, forget those that every group has passed; know them again when one falls back."""
        if lowest < self._pruned:
            self._deletions_read = lowest
        self._pruned = lowest
        self._held_after = {}
        if head == self._deletions_read and not self.deleted and not self._unforgotten:
            return False
        found = self.context.ledger.deletions(self.name, self._deletions_read) if head > self._deletions_read else []
        for seq, kind, subject_id in found:
            self.deleted[(kind, subject_id)] = seq
        self._deletions_read = max(head, self._deletions_read)
        self._held_after = self._held()
        for subject, groups in self._held_after.items():
            self._unforgotten.setdefault(subject, set()).update(groups)
        if self.deleted:
            self.deleted = {k: seq for k, seq in self.deleted.items() if seq > lowest}
        return bool(found)

    def _held(self) -> dict[tuple[str, str], set[str]]:
        """Which groups hold an erased subject past its erasure, until they are folded afresh: there it stays hidden."""
        held: dict[tuple[str, str], set[str]] = {}
        for kind, subject_id, group in self.context.ledger.unforgotten(self.name):
            held.setdefault((kind, subject_id), set()).add(group)
        return held

    def _measure(self) -> None:
        """Sample event → visible of what this process appended: seen by the groups that handle its types."""
        now = time.monotonic()
        reached: dict[frozenset[str], int] = {}
        while self.accepted:
            position, since, types = self.accepted[0]
            if types not in reached:
                reached[types] = self.visible_position(types)
            if position > reached[types]:
                return
            self.accepted.popleft()
            self._samples(self.name, now - since)

    # -- reading --------------------------------------------------------------------------------------------------
    def live(self) -> list[GroupView]:
        return [v for v in self.groups.values() if v.group.slot == "live"]

    def halted(self, view: GroupView) -> bool:
        state = self.states.get(view.group.name)
        return state is not None and (state.halted is not None)

    def visible_position(self, types: Iterable[str] | None) -> int:
        """The position up to which every live, unhalted group that handles one of the types has folded, here."""
        wanted = None if types is None else set(types)
        marks = [
            v.watermark for v in self.live() if not self.halted(v) and (wanted is None or v.group.handles & wanted)
        ]
        return min(marks, default=self.head)

    def wait(self, position: int, types: Iterable[str] | None, timeout_s: float) -> bool:
        """Wait until a position is visible; False when time runs out."""
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while self.visible_position(types) < position:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.changed.wait(min(left, 0.25))
        return True

    def member(self, policy: str) -> MemberView:
        """A live policy's view by ``name``, or any slot's by ``name@version``. Raises KeyError."""
        for view in sorted(self.groups.values(), key=lambda v: v.group.slot != "live"):
            for member in view.members.values():
                key = member.runtime.key
                if policy == key or (policy == member.runtime.instance.name and view.group.slot == "live"):
                    return member
        raise KeyError(policy)

    def servers(self, kind: type, policy: str | None = None) -> list[tuple[GroupView, MemberView]]:
        """Members whose server is of a kind (a runtime-checkable protocol), live ones, or the one named."""
        found = []
        for view in self.groups.values():
            for member in view.members.values():
                named = (
                    policy in (member.runtime.key, member.runtime.instance.name)
                    if policy
                    else view.group.slot == "live"
                )
                if named and member.server is not None and isinstance(member.server, kind):
                    found.append((view, member))
        if policy:
            found.sort(key=lambda pair: (pair[1].runtime.key != policy, pair[0].group.slot != "live"))
        return found

    @contextmanager
    def reading(self, views: Iterable[GroupView]) -> Iterator[Cut]:
        """Hold the groups' read locks; the cut says what the answer is made from."""
        held = sorted({v.group.name: v for v in views}.values(), key=lambda v: v.group.name)
        with ExitStack() as stack:
            for view in held:
                stack.enter_context(view.lock.read())
            yield self.cut(held)

    def cut(self, views: Iterable[GroupView]) -> Cut:
        used = list(views)
        position = min((v.watermark for v in used), default=self.head)
        degraded = [f"halted:{v.group.name}" for v in self.live() if self.halted(v)]
        return Cut(
            position=position,
            age_ms=self.age_ms(position),
            policies={
                m.runtime.instance.name: str(m.runtime.instance.version) for v in used for m in v.members.values()
            },
            degraded=degraded,
        )

    def age_ms(self, position: int) -> int:
        """How old the view is: 0 when it has everything up to the head it saw last, else since it last followed."""
        since = int((time.monotonic() - self.followed_at) * 1000)
        if position >= self.head:
            return max(0, since - self.context.settings.fold.view_poll_ms * 2)
        rows = self.context.ledger.read(self.name, position, 1).rows
        if not rows:
            return since
        return max(since, (self.context.clock.now_us() - rows[0].recorded_us) // 1000)

    @property
    def hides_upto(self) -> int:
        """The position up to which deletions are known here."""
        return self._deletions_read

    def hidden(self, view: GroupView, subjects: Iterable[Subject]) -> bool:
        """Whether a result with these source subjects is hidden: one was deleted past the group's watermark, or is
        erased and the group has not forgotten it."""
        deleted, held = self.deleted, self._unforgotten
        return bool(deleted or held) and any(
            deleted.get((s.kind, s.id), 0) > view.watermark or view.group.name in held.get((s.kind, s.id), ())
            for s in subjects
        )


class Views:
    """The views of all workspaces in this process, and the thread that keeps them fresh."""

    def __init__(
        self, context: Context, *, samples: Callable[[str, float], None] = lambda workspace, seconds: None
    ) -> None:
        self.context = context
        self._views: dict[str, WorkspaceView] = {}
        self._opening = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._samples = samples
        self.error: str | None = None
        self._thread = threading.Thread(target=self._loop, name="views", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def workspace(self, name: str) -> WorkspaceView:
        """The view of a workspace, opened at first use. Raises ``LedgerUnavailable``."""
        view = self._views.get(name)
        if view is None:
            with self._opening:
                view = self._views.get(name)
                if view is None:
                    view = WorkspaceView(self.context, name, self._samples)
                    self._views[name] = view
        return view

    def opened(self) -> list[WorkspaceView]:
        return list(self._views.values())

    def wake(self) -> None:
        """A commit was made in this process: follow now."""
        self._wake.set()

    def _loop(self) -> None:
        poll_s = self.context.settings.fold.view_poll_ms / 1000
        while not self._stop.is_set():
            self._wake.wait(poll_s)
            self._wake.clear()
            for view in self.opened():
                try:
                    view.follow()
                    self.error = None
                except LedgerUnavailable as error:
                    self.error = str(error)
                    self._stop.wait(0.5)
                except Exception as error:
                    self.error = repr(error)
                    log.exception("view_follow_failed workspace=%s", view.name)
                    self._stop.wait(0.5)

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        for view in self.opened():
            for group in view.groups.values():
                group.stores.close()
