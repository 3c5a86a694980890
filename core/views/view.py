"""Follow the feed: each group's commits applied in order to read-only stores, and what was deleted hidden at once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import CorruptCheckpoint, LedgerUnavailable
from streamfold.core.events.model import Subject
from streamfold.core.fold.stores import GroupStores, recover
from streamfold.core.fold.tools import InstanceTools
from streamfold.core.ledger.abc import Commit, GroupState
from streamfold.core.policy import ReadOnly, Settles, Tools
from streamfold.core.views.arms import Answering, Arm, answering
from streamfold.core.views.lock import ReadWriteLock
from streamfold.core.views.settle import Settling
from streamfold.core.views.switch import Serving

log = logging.getLogger("streamfold.views")
T = TypeVar("T")
_FEED_BYTES, _BACKFILL_BYTES = 8_000_000, 1_000_000
"""Most of the feed that is applied in one go; what is live does not wait for what stands beside it."""
_POSITIONS = 8
"""Groups are at different ones."""
_KEEP_GONE_S = 60.0
"""A retired group's stores stay open so long for requests that had chosen it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What an answer was made from: lowest watermark of the groups that answered, versions, what is degraded."""

    position: int
    age_ms: int
    policies: dict[str, str]
    degraded: list[str] = field(default_factory=list)
    arms: tuple[Arm, ...] = ()
    """Of the live A/Bs that the groups are in."""

    def as_json(self) -> dict[str, Any]:
        said = {"position": self.position, "age_ms": self.age_ms, "policies": self.policies, "degraded": self.degraded}
        if self.arms:
            said["arms"] = [{"experiment": one.experiment, "arm": one.arm} for one in self.arms]
        return said


class MemberView:
    """What a policy's ``serve`` gets: its stores by name, its backends, other live policies."""

    def __init__(self, workspace: WorkspaceView, group: GroupView, runtime: Runtime) -> None:
        self._workspace = workspace
        self._group = group
        self.runtime = runtime
        self._key = runtime.key
        self.tools: Tools = InstanceTools(workspace.context, workspace.name, runtime, keep=False)
        self.server: Any = None
        self._kinds: dict[type, bool] = {}

    def serves(self, kind: type) -> bool:
        """Whether the server is of a kind (a runtime-checkable protocol): looked at once, for each takes 50 µs."""
        if self.server is None:
            return False
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = isinstance(self.server, kind)
        return found

    def __getitem__(self, name: str) -> Any:
        return self._group.stores.by_runtime[self._key][name]

    def of(self, policy: str) -> ReadOnly:
        """A member of the same group, or else a live policy: a shadow answers from its own copies of what it reads."""
        return self._group.members.get(policy) or self._workspace.member(policy)


class GroupView:
    """One group's stores at a commit."""

    def __init__(self, workspace: WorkspaceView, group: Group, *, outdated: bool = False) -> None:
        self.workspace = workspace
        self.group = group
        self.outdated = outdated
        """Whether the code of this version is gone, and today's serves its last state."""
        self.lock = ReadWriteLock()
        self.commit_no = 0
        self.watermark = 0
        """What answers are at or past: the stores' position, once what servers make of it is worked out."""
        self._settling: Settling | None = None
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
                if attempt == 4 or self.outdated:  # the state of another version is none of ours to fold afresh
                    raise
                if attempt == 3 and context.settings.is_embedded:
                    self._refold(first, error)
                time.sleep(0.1 * (attempt + 1))
            except BaseException:
                stores.close()
                raise
        with self.lock.write():
            if self._settling is not None:
                self._settling.close()
            old = getattr(self, "stores", None)
            self.stores, self.commit_no, self.watermark = stores, commit_no, watermark
            self.members = {r.instance.name: MemberView(self.workspace, self, r) for r in self.group.runtimes}
            for member in self.members.values():
                member.server = member.runtime.policy.serve(member)
            self._let_settle()
        if old is not None:
            old.close()

    def _refold(self, first: str | None, error: CorruptCheckpoint) -> None:
        """Have the group folded afresh from the log, unless a newer checkpoint was written meanwhile.

        Only in the one process of the embedded shape: elsewhere the fold decides, since a view's host may merely not
        see the files.
        """
        ledger, name = self.workspace.context.ledger, self.workspace.name
        if any(i.group == self.group.name and i.slot == "retired" for i in ledger.instances(name)):
            raise error  # retired meanwhile: its feed is gone on purpose
        if self.workspace.context.reach(name, self.group).rebuild == "impossible":
            raise error  # the log does not give it again
        if first is not None and ledger.group(name, self.group.name).checkpoint == first:
            log.error("checkpoint_corrupt group=%s: %s; folding afresh from the log", self.group.name, error)
            ledger.reset_group(name, self.group.name, watermark=self.group.start_seq)

    def apply(self, commits: Sequence[Commit], mark: int) -> None:
        """Apply commits in order, then move the watermark to ``mark`` when everything up to it is applied."""
        if not commits:  # nothing that answers are made of changes: nobody has to wait
            (self._reach if self._settling is None else self._settling.passed)(mark)
            return
        with self.lock.write():
            for commit in commits:
                if commit.commit_no <= self.commit_no:
                    continue
                if commit.commit_no != self.commit_no + 1:
                    raise CorruptCheckpoint(
                        f"feed of {self.group.name} jumps from {self.commit_no} to {commit.commit_no}"
                    )
                self.stores.apply(commit)
                self.commit_no, mark = commit.commit_no, max(commit.watermark, mark)
            (self._reach if self._settling is None else self._settling.moved)(mark)

    def _let_settle(self) -> None:
        """Have the servers of new stores work off the requests' path."""
        servers = [member.server for member in self.members.values() if isinstance(member.server, Settles)]
        if servers:
            self._settling = Settling(servers, self.lock, self._reach, self.workspace.settled)

    def _reach(self, position: int) -> None:
        self.watermark = max(self.watermark, position)

    def close(self) -> None:
        """Close the stores once nobody reads them."""
        with self.lock.write():
            if self._settling is not None:
                self._settling.close()
            self.stores.close()


class WorkspaceView:
    """All groups of a workspace that this process serves."""

    def __init__(self, context: Context, name: str, samples: Callable[[str, float], None]) -> None:
        self.context = context
        self.name = name
        self.groups: dict[str, GroupView] = {}
        self.serving = Serving()
        self.changed = threading.Condition()
        self.listeners: list[Callable[[], None]] = []
        self.head = 0
        self.states: dict[str, GroupState] = {}
        self._split: tuple[GroupState, ...] = ()
        """Those that answer a share of the users here."""
        self._due: dict[str, int] = {}
        """From which position on each experiment's candidate answers here; 0: it does already."""
        self.states_at = 0.0
        self.followed_at = 0.0
        self.deleted: dict[tuple[str, str], int] = {}
        """Where what is not yet deleted everywhere was deleted: changed under the lock, read without it."""
        self._hiding = threading.Lock()
        self._deletions_read = 0
        self._pruned = 0
        self._unforgotten: dict[tuple[str, str], set[str]] = {}
        self._held_after: dict[tuple[str, str], set[str]] = {}
        self._samples = samples
        self._order = {policy: place for place, policy in enumerate(context.settings.policies)}
        self._asking = ReadWriteLock()
        self._revision = -1
        self._seen: list[Group] = []
        self._outdated: list[Group] = []
        self._unreadable: set[str] = set()
        self._live_rows: dict[str, str] = {}
        self._gone: deque[tuple[float, GroupView]] = deque()
        self._lock = threading.Lock()
        self.closed = False
        self._logged_after: dict[int, int] = {}
        """When what follows a position was logged: read once for all who ask there. Newest first; replaced, never
        changed."""
        self.accepted: deque[tuple[int, float, frozenset[str]]] = deque(maxlen=20_000)
        """(position, monotonic time, types) of what this process appended, to measure event → visible."""
        context.pin(name)
        self.follow()

    # -- following ------------------------------------------------------------------------------------------------
    def follow(self) -> bool:
        """Apply what is new; True when something was. Called by the follower thread and at start."""
        with self._lock:
            return not self.closed and self._follow()

    def _follow(self) -> bool:
        """Read how far the groups are before who serves: then nothing past a promotion is applied to what it demotes.

        A promotion's position is at least the watermark that its demoted groups have when it is made, and they are
        held at that until this view has switched (see ``switch.py``).
        """
        ctx = self.context
        held = self._held() if self._unforgotten else {}  # before the marks: what is not in it now is loaded below
        head = ctx.ledger.head(self.name)
        marks = ctx.ledger.watermarks(self.name)
        groups = self._look_around(marks)
        leaving = self.serving.leaving(groups)
        followed = {n: v for n, v in self.groups.items() if n not in leaving and n in marks}
        moved = {n: v for n, v in followed.items() if marks[n][1] > v.commit_no}
        reset = [v for n, v in followed.items() if marks[n][1] < v.commit_no]
        for view in reset:
            view.load()
        feed = self._read_feed({n: v.commit_no for n, v in moved.items()}, marks)
        # Deletions are read after the marks and before the commits are applied: what was deleted is hidden at once.
        changed = self._read_deletions(min((v.watermark for v in self.groups.values()), default=0), head)
        for name, view in followed.items():
            if name in moved and name not in feed:
                continue  # its turn comes: others' commits were enough for this time
            try:
                changed |= self._advance(view, feed.get(name, []), marks[name], moved=name in moved)
            except LedgerUnavailable:
                raise
            except Exception as error:
                if not view.outdated:
                    raise
                self._give_up(name, error)
                changed = True
        changed |= self._switch(groups)
        self._split = self._level()
        self._unforgotten = self._still_unforgotten(held, marks)
        self.head = head
        self.followed_at = time.monotonic()
        if changed:
            self.settled()
        return changed

    def settled(self) -> None:
        """Something became visible: say so to whoever waits."""
        with self.changed:
            self._measure()
            self.changed.notify_all()
        for listener in list(self.listeners):
            listener()

    def _read_feed(self, cuts: Mapping[str, int], marks: Mapping[str, tuple[int, int]]) -> dict[str, list[Commit]]:
        """The groups' next commits up to their marks: first of those that answer, then a little of a backfill's.

        A group whose commits are gone (a checkpoint dropped them) has none here; one that has to wait is left out.
        """
        found: dict[str, list[Commit]] = {}
        answering = {state.group for state in self.states.values() if state.share_ppm} | self.serving.live
        live = {name: cut for name, cut in cuts.items() if name in answering}
        others = {name: cut for name, cut in cuts.items() if name not in live}
        for part, limit_bytes in ((live, _FEED_BYTES), (others, _BACKFILL_BYTES)):
            commits = self.context.ledger.feed(self.name, part, limit_bytes=limit_bytes) if part else []
            full = sum(len(commit.changes) for commit in commits) >= limit_bytes
            for name in part:
                mine = [c for c in commits if c.group == name and c.commit_no <= marks[name][1]]
                if mine or not full:
                    found[name] = mine
        return found

    def _advance(self, view: GroupView, commits: list[Commit], mark: tuple[int, int], *, moved: bool) -> bool:
        """Bring one group up to date; True when it changed."""
        watermark, commit_no = mark
        if moved and not commits:  # a checkpoint dropped what this view lacks
            view.load()
            return True
        reached = commits[-1].commit_no if commits else view.commit_no
        passed = watermark if reached >= commit_no else 0
        if not commits and passed <= view.watermark:
            return False
        before = view.watermark
        try:
            view.apply(commits, passed)
        except CorruptCheckpoint:
            view.load()
            return True
        return bool(commits) or view.watermark != before  # while servers work something out it stays

    def _give_up(self, name: str, error: Exception) -> None:
        """Serve an outdated version no more, since today's code cannot read its stores."""
        log.warning("outdated_not_served workspace=%s group=%s: %r", self.name, name, error)
        self._unreadable.add(name)
        self.groups = {group: view for group, view in self.groups.items() if group != name}

    def _look_around(self, marks: Mapping[str, tuple[int, int]]) -> list[Group]:
        """Read instances and states where they may have changed; open a view of each group, let go of what is gone."""
        ctx = self.context
        revision = ctx.ledger.slots_revision(self.name)
        if revision != self._revision or time.monotonic() - self.states_at > 1.0:
            # States after rows: a group that is seen live has the position of its promotion. Both are kept here, since
            # the context's are renewed by others too.
            self._seen = ctx.groups(self.name, fresh=True)
            self._outdated = ctx.outdated(self.name)
            self._live_rows = {row.name: row.group for row in ctx.instances(self.name) if row.slot == "live"}
            self.states = {s.group: s for s in ctx.ledger.groups(self.name)}
            self.states_at = time.monotonic()
            self._revision = revision
        views = dict(self.groups)
        outdated = {group.name for group in self._outdated}
        for group in (*self._seen, *self._outdated):
            have = views.get(group.name)
            if have is not None:
                have.group = group
            elif group.name in marks:
                view = self._open(group, outdated=group.name in outdated)
                if view is not None:
                    views[group.name] = view
        wanted = {group.name for group in self._seen} | outdated | self.serving.live
        for name in set(views) - wanted:
            self._gone.append((time.monotonic(), views.pop(name)))
        while self._gone and time.monotonic() - self._gone[0][0] > _KEEP_GONE_S:
            self._gone.popleft()[1].close()
        self.groups = views  # readers go through it without a lock: it is replaced, never changed
        return [*self._seen, *(group for group in self._outdated if group.name in views)]

    def _open(self, group: Group, *, outdated: bool) -> GroupView | None:
        """Open a view; one of an outdated version only if today's code can read its stores (it is tried once)."""
        if not outdated:
            return GroupView(self, group)
        if group.name in self._unreadable:
            return None
        try:
            return GroupView(self, group, outdated=True)
        except LedgerUnavailable:
            raise
        except Exception as error:
            self._give_up(group.name, error)
            return None

    def _switch(self, groups: Sequence[Group]) -> bool:
        """Serve what is live now, once this view has its position."""
        opened = {group.name for group in groups if group.name in self.groups}
        behind = {
            name
            for name in opened
            if (state := self.states.get(name)) is not None and self.groups[name].watermark < state.live_from
        }
        after = self.serving.after(groups, opened, behind, self._live_rows)
        if after == self.serving:
            return False
        with self._asking.write():
            self.serving = after
        return True

    def _level(self) -> tuple[GroupState, ...]:
        """Who answers a share of the users: from when it is as far as what it answers for was when this view learned of
        the experiment, so that no position goes back for the users that it takes over.

        That position is fixed: what is live moves on. A view that opens has answered nobody yet, and a split begins
        with the candidate level in the ledger: there it answers at once, as in the processes that ran on. What takes
        a candidate's place (it was rebuilt) goes on in its experiment.
        """
        shared = [state for state in self.states.values() if state.share_ppm]
        self._due = {one: due for one, due in self._due.items() if one in {state.experiment for state in shared}}
        found = []
        for state in shared:
            view = self.groups.get(state.group)
            if view is None:
                continue
            if state.experiment not in self._due:
                live = [one.watermark for one in self.live() if one.group.names & view.group.names]
                self._due[state.experiment] = max(live, default=0) if self.followed_at else 0
            if view.watermark >= self._due[state.experiment]:
                self._due[state.experiment] = 0
                found.append(state)
        return tuple(found)

    def _read_deletions(self, lowest: int, head: int) -> bool:
        """Learn of new deletions, forget those that every group has passed; know them again when one falls back."""
        if lowest < self._pruned:
            self._deletions_read = lowest
        self._pruned = lowest
        self._held_after = {}
        if head == self._deletions_read and not self.deleted and not self._unforgotten:
            return False
        found = self.context.ledger.deletions(self.name, self._deletions_read) if head > self._deletions_read else []
        self._hide(((kind, subject_id), seq) for seq, kind, subject_id in found)
        self._deletions_read = max(head, self._deletions_read)
        self._held_after = self._held()
        for subject, groups in self._held_after.items():
            self._unforgotten.setdefault(subject, set()).update(groups)
        with self._hiding:
            for subject in [subject for subject, seq in self.deleted.items() if seq <= lowest]:
                del self.deleted[subject]
        return bool(found)

    def _held(self) -> dict[tuple[str, str], set[str]]:
        """Which groups hold an erased subject past its erasure, until they are folded afresh: there it stays hidden."""
        held: dict[tuple[str, str], set[str]] = {}
        for kind, subject_id, group in self.context.ledger.unforgotten(self.name):
            held.setdefault((kind, subject_id), set()).add(group)
        return held

    def _still_unforgotten(
        self, held: dict[tuple[str, str], set[str]], marks: Mapping[str, tuple[int, int]]
    ) -> dict[tuple[str, str], set[str]]:
        """What stays hidden: what was held before this look or learned in it, and all that stood in a view which this
        look has not brought to its group's mark (one that leaves, or whose turn has not come)."""
        behind = {n for n, v in self.groups.items() if n not in marks or v.commit_no < marks[n][1]}
        found = {subject: set(groups) for subject, groups in held.items()}
        for subject, groups in self._held_after.items():
            found.setdefault(subject, set()).update(groups)
        for subject, groups in self._unforgotten.items():
            if kept := groups & behind:
                found.setdefault(subject, set()).update(kept)
        return found

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

    def close(self) -> None:
        """Close all stores; nobody reads them any longer."""
        with self._lock:
            self.closed = True
            for group in [*self.groups.values(), *(group for _, group in self._gone)]:
                group.close()

    # -- reading --------------------------------------------------------------------------------------------------
    def live(self) -> list[GroupView]:
        live = self.serving.live
        return [v for n, v in self.groups.items() if n in live]

    def answerers(self) -> list[GroupView]:
        """What is live, and the candidates that answer a share of the users."""
        names = self.serving.live | {state.group for state in self._split}
        return [v for n, v in self.groups.items() if n in names]

    def halted(self, view: GroupView) -> bool:
        """Whether a group stands still: its policy failed, or its code is gone."""
        state = self.states.get(view.group.name)
        return view.outdated or (state is not None and state.halted is not None)

    def visible_position(self, types: Iterable[str] | None) -> int:
        """The position up to which all have folded, here, that answer users, do not stand still and handle one of the
        types."""
        wanted = None if types is None else set(types)
        marks = [
            v.watermark for v in self.answerers() if not self.halted(v) and (wanted is None or v.group.handles & wanted)
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
        """A live policy's view by ``name``, or any slot's by ``name@version`` (in full or not). Raises KeyError."""
        for _, member in self._members(policy):
            return member
        raise KeyError(policy)

    def experiment_of(self, group: str) -> str:
        """The live A/B in which a group answers users as a candidate, as far as this view knows; empty: none."""
        return next((state.experiment for state in self._split if state.group == group), "")

    def answering(self, user_id: str | None) -> Answering:
        """Who answers a user (see ``arms.py``); to be asked with :meth:`asking` held, as all that chooses is."""
        return answering(self.serving, self._split, self.groups, user_id)

    def servers(
        self, kind: type, policy: str | None = None, among: Answering | None = None
    ) -> list[tuple[GroupView, MemberView]]:
        """Members whose server is of a kind (a runtime-checkable protocol), live ones, or the one named.

        ``among``: those who answer a user, in the place of what is live.
        """
        return [(view, member) for view, member in self._members(policy, among) if member.serves(kind)]

    def _members(self, policy: str | None, among: Answering | None = None) -> list[tuple[GroupView, MemberView]]:
        """Live members, or those that a name means: live ones by their ``name``, any by ``name@version``, live first.

        Of live ones those that the settings name first come first: who asks for no policy gets that one's answer.
        One look at who is live: a promotion meanwhile does not mix with it.
        """
        live, views = self.serving.live if among is None else among.groups, self.groups
        found = [
            (view, member)
            for name, view in views.items()
            for member in view.members.values()
            if (name in live and policy in (None, member.runtime.instance.name))
            or (policy is not None and policy in member.runtime.names)
        ]
        last = len(self._order)
        return sorted(
            found,
            key=lambda one: (one[0].group.name not in live, self._order.get(one[1].runtime.instance.name, last)),
        )

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Hold who is live from the choice of who answers to the end of the answer.

        Without it a version that was chosen, then demoted, would answer from past the position of the switch.
        """
        with self._asking.read():
            yield

    def asked(self, work: Callable[[], T]) -> T:
        """Run what chooses who answers, and answers."""
        with self.asking():
            return work()

    @contextmanager
    def reading(self, views: Iterable[GroupView], among: Answering | None = None) -> Iterator[Cut]:
        """Hold the groups' read locks; the cut says what the answer is made from.

        ``among``: who answers the user, where it was chosen by the user.
        """
        held = sorted({v.group.name: v for v in views}.values(), key=lambda v: v.group.name)
        with ExitStack() as stack:
            for view in held:
                stack.enter_context(view.lock.read())
            yield self.cut(held, among)

    def cut(self, views: Iterable[GroupView], among: Answering | None = None) -> Cut:
        used = list(views)
        position = min((v.watermark for v in used), default=self.head)
        stand = [v for v in {v.group.name: v for v in (*self.live(), *used)}.values() if self.halted(v)]
        degraded = [f"{'missing' if v.outdated else 'halted'}:{v.group.name}" for v in stand]
        degraded += [f"missing:{name}" for name in self.serving.awaited]
        return Cut(
            position=position,
            age_ms=self.age_ms(position),
            policies={
                m.runtime.instance.name: str(m.runtime.instance.version) for v in used for m in v.members.values()
            },
            degraded=degraded,
            arms=() if among is None else among.of(used),
        )

    def age_ms(self, position: int) -> int:
        """How old the view is: 0 when it has everything up to the head it saw last, else since it last followed."""
        since = int((time.monotonic() - self.followed_at) * 1000)
        if position >= self.head:
            return max(0, since - self.context.settings.fold.view_poll_ms * 2)
        logged_us = self._logged_after.get(position)
        if logged_us is None:
            rows = self.context.ledger.read(self.name, position, 1).rows
            if not rows:
                return since
            logged_us = rows[0].recorded_us
            self._logged_after = {position: logged_us, **dict(islice(self._logged_after.items(), _POSITIONS - 1))}
        return max(since, (self.context.clock.now_us() - logged_us) // 1000)

    @property
    def hides_upto(self) -> int:
        """The position up to which deletions are known here."""
        return self._deletions_read

    def hide(self, deleted: Iterable[tuple[Subject, int]]) -> None:
        """Hide what this process has just logged the deletion of (subject, position): no answer after this shows it."""
        self._hide(((subject.kind, subject.id), position) for subject, position in deleted)

    def _hide(self, deleted: Iterable[tuple[tuple[str, str], int]]) -> None:
        with self._hiding:
            for subject, position in deleted:
                self.deleted[subject] = max(position, self.deleted.get(subject, 0))

    def hides(self, view: GroupView) -> bool:
        """Whether anything may be hidden from this group's answers."""
        return bool(self._unforgotten) or any(position > view.watermark for position in list(self.deleted.values()))

    def hidden(self, view: GroupView, subjects: Iterable[Subject]) -> bool:
        """Whether a result with these source subjects is hidden: one was deleted past the group's watermark, or is
        erased and the group has not forgotten it."""
        deleted, held = self.deleted, self._unforgotten
        return bool(deleted or held) and any(
            deleted.get((s.kind, s.id), 0) > view.watermark or view.group.name in held.get((s.kind, s.id), ())
            for s in subjects
        )
