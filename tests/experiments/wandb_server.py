"""As much of W&B's server as a comparison asks for, on a port of this machine: runs, their histories, and Reports.

What a run asks for that is logged online is in `wandb_uploads`.

What it answers is in the shape of W&B's GraphQL as the pinned client asks for it; the client itself is the real one.
"""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

KEY = "k" * 40


@dataclass
class Server:
    """What it holds, and what it was told.

    Attributes:
        address: of the server.
        runs: as the API has them: name, state, config, summary, history.
        reports: what each `upsertView` said.
    """

    address: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a command's W&B use it."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """Data that a query asks for."""
        if "upsertView" in query:
            self.reports.append(given)
            view = {"id": "VmlldzoxMjM=", "name": given["name"], "displayName": given["displayName"]}
            view |= {"type": given["type"], "description": given["description"] or "", "spec": given["spec"]}
            project = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
            view |= {"project": project, "user": None, "createdAt": NOW, "updatedAt": NOW}
            return {"upsertView": {"view": view, "inserted": True}}
        if "viewer {" in query:
            viewer = {"id": "u", "entity": "team", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer}
        if "runs(" in query:
            found = {
                "edges": [{"node": _node(one, query), "cursor": one["name"]} for one in self.runs],
                "pageInfo": _WHOLE,
            }
            return {"project": {"internalId": "1", "runCount": len(self.runs), "readOnly": False, "runs": found}}
        if "RunFragment" in query:
            return {"project": {"run": _node(self._named(given["name"]), query)}}
        if "parquetHistory" in query:  # what W&B has not yet put into files, which is all
            rows = [{"_step": row["_step"]} for row in self._named(given["runName"])["history"]]
            return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": rows}}}}
        if "HistoryPage" in query:
            rows = self._named(given["run"])["history"]
            page = [json.dumps(row) for row in rows if given["minStep"] <= row["_step"] < given["maxStep"]]
            return {"project": {"run": {"history": page}}}
        if "historyKeys" in query:
            return {"project": {"run": {"historyKeys": _keys(self._named(given["name"]))}}}
        if "models(" in query:
            project = {"__typename": "Project", "id": "p", "name": "project", "entityName": "team"}
            project |= {"createdAt": NOW, "isBenchmark": False, "user": None}
            return {"models": {"edges": [{"node": project}], "pageInfo": {"__typename": "PageInfo", **_WHOLE}}}
        return {}

    def take(self, path: str, content: bytes) -> None:
        """What is sent to `path`, and is no query."""

    def _named(self, name: str) -> dict[str, Any]:
        return next(one for one in self.runs if one["name"] == name)


NOW = "2026-01-01T00:00:00"
_WHOLE = {"endCursor": None, "hasNextPage": False}


def _node(run: dict[str, Any], query: str) -> dict[str, Any]:
    """The fields of a run that a query names."""
    config = json.dumps({name: {"value": value} for name, value in run["config"].items()})
    told = dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes", "systemMetrics"))
    fields = {
        **told,
        **{"id": run["name"], "name": run["name"], "displayName": run["name"], "state": run["state"], "tags": []},
        **{"config": config, "summaryMetrics": json.dumps(run["summary"]), "projectId": "1", "readOnly": False},
        **{"createdAt": NOW, "heartbeatAt": NOW, "historyLineCount": len(run["history"]), "historyKeys": _keys(run)},
        "user": {"name": "me", "username": "me"},
    }
    return {name: value for name, value in fields.items() if name in query.split()}


def _keys(run: dict[str, Any]) -> dict[str, Any]:
    return {"lastStep": max((row["_step"] for row in run["history"]), default=0), "keys": {}}


@contextlib.contextmanager
def serving(runs: list[dict[str, Any]]) -> Iterator[Server]:
    """A server that holds `runs`, until the end."""
    with listening(Server(runs=runs)) as server:
        yield server


@contextlib.contextmanager
def listening(server: Server) -> Iterator[Server]:
    """Have `server` answer, until the end."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.path != "/graphql":
                server.take(self.path, content)
                self._say({})
                return
            asked = json.loads(content)
            self._say({"data": server.answer(asked.get("query", ""), asked.get("variables") or {})})

        do_PUT = do_POST

        def _say(self, document: dict[str, Any]) -> None:
            answer = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as socket:
        threading.Thread(target=socket.serve_forever, daemon=True).start()
        server.address = f"http://127.0.0.1:{socket.server_port}"
        try:
            yield server
        finally:
            socket.shutdown()
