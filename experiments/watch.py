"""Watch runs as they run: `python -m experiments.watch outputs`, or `lwpd-watch` when installed, without W&B.

Serves a page on a port of this machine alone, which shows the runs below the given directories, those that begin later
too: loss, arrivals, who was lost and why, bytes, waiting against computing. It reads what runs write; nothing is asked
of them.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .refusals import in_a_sentence
from .typed_command import beside

_HERE = "127.0.0.1"
# The page asks for itself again; what is scrolled to, or marked, stays where the text is the same.
_SCRIPT = """
const again = async () => {
  try {
    const page = new DOMParser().parseFromString(await (await fetch(location)).text(), "text/html");
    document.title = page.title;
    document.body.innerHTML = page.body.innerHTML;
  } catch { document.title = "(ended) " + document.title.replace("(ended) ", ""); }
  setTimeout(again, %d);
};
setTimeout(again, %d);
"""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # a page that is being made is made to its end: matplotlib in a process that ends crashes it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever closes a tab before the page has come is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit status 1 and one sentence where there is nothing to watch."""
    options = _parser().parse_intermixed_args(arguments)
    with in_a_sentence(ValueError, ModuleNotFoundError):
        _watch(options)


def _watch(options: argparse.Namespace) -> None:
    # matplotlib takes a second to import, and `--help` needs none of it; where it is missing, one sentence says so.
    from .comparison.find import run_directories
    from .comparison.watched import page

    for path in options.paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no directory: use a run's, or one that holds runs, such as outputs.")
        if next(run_directories(path), None) is None:
            raise ValueError(f"No run in {path}: start one with {beside('train')}.")
    if options.once is not None:
        try:
            options.once.write_text(page(options.paths, ""), encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--once {options.once} cannot be written ({error.strerror}): use another file.") from None
        print(options.once)
        return
    milliseconds = round(1000 * options.every)
    script, one_at_a_time = _SCRIPT % (milliseconds, milliseconds), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0  # seconds for whoever says or takes nothing: Ctrl-C waits for them

        def do_GET(self) -> None:
            if self.path != "/":
                self.send_error(404)
                return
            with one_at_a_time:  # matplotlib's settings are the process'
                content = page(options.paths, script).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    try:
        server = _Server((_HERE, options.port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {options.port} cannot be had ({error}): use another, or 0 for any.") from None
    with server:
        print(f"http://{_HERE}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.watch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN_DIR", help="a run's directory, or one that holds runs"
    )
    parser.add_argument("--port", type=int, default=8400, help="of this machine; 0: any that is free (default: 8400)")
    parser.add_argument("--every", type=float, default=3.0, metavar="SECONDS", help="how often the page asks again")
    parser.add_argument("--once", type=Path, metavar="FILE.html", help="write the page and end")
    return parser


if __name__ == "__main__":
    main()
