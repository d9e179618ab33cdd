"""Where a cgroup with a limit can be made, and that none is left behind."""

import os

import pytest

from lwpd_lightning.injection import cgroup

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
CONTAINED = V1.replace("0:29 /", "0:29 /docker/1")


@pytest.mark.parametrize(
    ("mounts", "own", "expected"),
    [
        # The hybrid layout: version 2 is tried as well, and found to have no cpu controller.
        (V1, "2:cpuset:/a\n1:cpu,cpuacct:/job\n0::/x", ["cpu,cpuacct/job", "unified/x", "unified"]),
        (V1, "1:cpu,cpuacct:/", ["cpu,cpuacct"]),
        (CONTAINED, "1:cpu,cpuacct:/docker/1", ["cpu,cpuacct"]),
        (CONTAINED, "1:cpu,cpuacct:/docker/1/job", ["cpu,cpuacct/job"]),
        (V1, "2:cpuset:/a", []),
        ("", "0::/", []),
    ],
)
def test_candidates_lie_where_the_process_is(mounts, own, expected):
    found = cgroup.candidates(mounts, own)

    assert [path.as_posix().removeprefix("/sys/fs/cgroup/") for path in found] == expected


def test_a_place_that_cannot_limit_is_refused_by_its_name(tmp_path):
    (tmp_path / "cgroup.procs").touch()

    with pytest.raises(FileNotFoundError, match=f"cpu controller is not enabled there: '{tmp_path}'"):
        cgroup._try(tmp_path, 0.5)

    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.procs"]


def test_version_2_is_limited_by_one_file(tmp_path):
    (tmp_path / "cpu.max").touch()
    for share, limit in ((0.2, "2000 10000"), (1.0, "10000 10000"), (cgroup.LEAST_SHARE, "1000 1000000")):
        cgroup._limit(tmp_path, share)
        assert (tmp_path / "cpu.max").read_text() == limit


def test_what_processes_left_that_are_gone_is_removed(tmp_path):
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    for owner in (gone, os.getpid(), os.getppid(), "else"):
        (tmp_path / f"lwpd-{owner}-worker1").mkdir()

    cgroup.remove(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {f"lwpd-{os.getppid()}-worker1", "lwpd-else-worker1"}
