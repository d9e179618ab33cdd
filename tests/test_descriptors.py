"""A fork reads the files that it inherited at positions of its own."""

import os
import zipfile

import pytest

from lwpd_lightning.descriptors import own_offsets


def in_a_fork(body):
    """What ``body`` returned there, as bytes."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, body())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        told = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return told


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(200)))
    return path


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("buffering", [0, -1])
def test_reads_in_a_fork_do_not_move_its_parents_file(path, buffering, deleted):
    with open(path, "rb", buffering=buffering) as file:
        file.seek(50)
        if deleted:
            path.unlink()

        def body():
            own_offsets()
            here = file.read(10)  # where it was when it was forked
            os.lseek(file.fileno(), 150, os.SEEK_SET)
            return here

        assert in_a_fork(body) == bytes(range(50, 60))
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 50
        assert file.read(5) == bytes(range(50, 55))


def test_without_it_they_do(path):
    with open(path, "rb", buffering=0) as file:
        in_a_fork(lambda: os.lseek(file.fileno(), 150, os.SEEK_SET).to_bytes(1, "big"))
        assert file.read(1) == bytes([150])


def test_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in "ab":
            archive.writestr(name, name * 3000)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        before = os.lseek(archive.fp.fileno(), 0, os.SEEK_CUR)

        def body():
            own_offsets()
            return archive.read("b")[:4]

        assert in_a_fork(body) == b"bbbb"
        assert os.lseek(archive.fp.fileno(), 0, os.SEEK_CUR) == before
        assert archive.read("a") == b"a" * 3000


def test_what_is_written_is_written_in_turns(tmp_path):
    with open(tmp_path / "log", "wb", buffering=0) as log:
        log.write(b"parent ")

        def body():
            own_offsets()
            log.write(b"fork ")
            return b""

        in_a_fork(body)
        log.write(b"parent")
    assert (tmp_path / "log").read_bytes() == b"parent fork parent"


def test_pipes_and_inheritance_stay_as_they_are(path):
    read, write = os.pipe()
    with open(path, "rb") as kept, open(path, "rb") as passed_on:
        os.set_inheritable(passed_on.fileno(), True)

        def body():
            own_offsets()
            os.write(write, b"x")
            assert os.read(read, 1) == b"x"
            return bytes([os.get_inheritable(kept.fileno()), os.get_inheritable(passed_on.fileno())])

        assert in_a_fork(body) == bytes([False, True])
    os.close(read), os.close(write)
