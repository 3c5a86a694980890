"""The read side: the same stores in a serving process, from checkpoint + feed, at a consistent cut.

``Views`` holds one ``WorkspaceView`` per workspace that was asked for, up to a bound; a follower thread applies each
group's feed commit by commit. A query holds a group's read lock, so it never sees half of a commit.
"""

from streamfold.core.views.arms import Answering, Arm
from streamfold.core.views.lock import ReadWriteLock
from streamfold.core.views.opened import Views
from streamfold.core.views.view import Cut, GroupView, MemberView, WorkspaceView

__all__ = ["Answering", "Arm", "Cut", "GroupView", "MemberView", "ReadWriteLock", "Views", "WorkspaceView"]
