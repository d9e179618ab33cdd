"""Cgroups that hold a process to a share of one core (Linux): version 2, or version 1's cpu controller.

A cgroup's name says which process answers for it, so that one which outlived its run is known by a later run.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

# A throttled process runs at the start of each period: short ones, so that it is slow rather than now and then asleep.
_PERIOD_US = 10_000
_LEAST_QUOTA_US, _LONGEST_PERIOD_US = 1000, 1_000_000  # the kernel's
LEAST_SHARE = _LEAST_QUOTA_US / _LONGEST_PERIOD_US


def place(share: float) -> Path:
    """The directory in which this process may make cgroups that get ``share`` of a core, or less.

    Raises:
        OSError: where there is none, with the kernel's reason.
    """
    refused: OSError = FileNotFoundError(errno.ENOENT, "no cgroups with a cpu controller are mounted")
    for parent in candidates(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()):
        try:
            _try(parent, share)
        except OSError as error:
            if isinstance(refused, FileNotFoundError):  # which says least
                refused = error
        else:
            return parent
    raise refused


def candidates(mounts: str, own: str) -> list[Path]:
    """Where cgroups with a limit might be made, best first, from /proc/self/mountinfo and /proc/self/cgroup.

    Version 1: below the process' own cgroup. Version 2 gives limits only to children of a cgroup that holds no process
    itself, so that one of the ancestors has to do.

    >>> v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
    >>> [path.as_posix() for path in candidates(v2, "0::/user.slice/job")]
    ['/sys/fs/cgroup/user.slice/job', '/sys/fs/cgroup/user.slice', '/sys/fs/cgroup']
    """
    inside = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        inside.update(dict.fromkeys(controllers.split(","), path))
    found = []
    for line in mounts.splitlines():
        here, _, kind = line.partition(" - ")
        root, mounted = here.split()[3:5]
        filesystem, _, options = kind.split()[:3]
        controller = {"cgroup": "cpu", "cgroup2": ""}.get(filesystem)
        if controller not in inside or (controller and controller not in options.split(",")):
            continue
        # A container may see its own cgroup as the root of what is mounted, and its name by the host's root.
        own_path = inside[controller]
        below = own_path.removeprefix(root) if root != "/" else own_path
        group = Path(mounted, below.lstrip("/"))
        found += [group, *([] if controller else [up for up in group.parents if up.is_relative_to(mounted)])]
    return found


def hold(parent: Path, owner: int, worker: int, share: float) -> None:
    """Move the calling process, all its threads, into a cgroup that gets ``share`` of one core's time.

    Args:
        parent: as `place` gives it.
        owner: the process that answers for the cgroup.
        worker: its number.
        share: at least `LEAST_SHARE`.
    """
    group = parent / f"lwpd-{owner}-worker{worker}"
    group.mkdir(exist_ok=True)
    _limit(group, share)
    (group / "cgroup.procs").write_text(str(os.getpid()))


def remove(parent: Path) -> None:
    """Remove the cgroups that this process answers for, or processes that are gone, where nobody is left in them."""
    for group in parent.glob("lwpd-*-*"):
        owner = group.name.split("-")[1]
        if owner == str(os.getpid()) or (owner.isdecimal() and not Path("/proc", owner).exists()):
            with contextlib.suppress(OSError):
                group.rmdir()


def _try(parent: Path, share: float) -> None:
    if not os.access(parent / "cgroup.procs", os.W_OK):  # who moves a process must be allowed to where both places meet
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent / "cgroup.procs"))
    group = parent / f"lwpd-{os.getpid()}-trial"
    group.mkdir()
    try:
        _limit(group, share)
    finally:
        group.rmdir()


def _limit(group: Path, share: float) -> None:
    period = max(_PERIOD_US, round(_LEAST_QUOTA_US / share))
    quota = max(_LEAST_QUOTA_US, round(period * share))
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota} {period}")
    elif (group / "cpu.cfs_quota_us").exists():
        (group / "cpu.cfs_period_us").write_text(str(period))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    else:
        raise FileNotFoundError(errno.ENOENT, "the cpu controller is not enabled there", str(group.parent))
