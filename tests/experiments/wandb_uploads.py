"""As much of W&B's server as a run asks for that is logged online: its record, its lines, its files and artefacts."""

import json
from dataclasses import dataclass, field
from typing import Any

from tests.experiments.wandb_server import NOW, Server

_PLACE = "/upload/"
_ARTEFACT = "QXJ0aWZhY3Q6"


@dataclass
class Uploads(Server):
    """What runs told it.

    Attributes:
        told: what was said of each run, by its id; what is said later goes before.
        lines: of each run's files that grow: its history's, for one.
        files: what was sent, by name; an artefact's by "artefact/name".
        artefacts: what was said of each, by the id that it was given.
        committed: ids of those that were finished, in that order.
    """

    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    artefacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    committed: list[str] = field(default_factory=list)

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """Data that a query asks for."""
        if "upsertBucket" in query:
            return {"upsertBucket": self._run(given)}
        if "RunResumeStatus" in query:
            return {"model": {"id": "p", "name": given["project"], "entity": _TEAM, "bucket": None}}
        if "createRunFiles" in query:
            places = [{"name": name, "uploadUrl": self._place(name)} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": places}}
        if "query ArtifactType(" in query:
            return {"project": {"artifact": None}}
        if "createArtifactManifest" in query:
            place = {"id": "f", "uploadUrl": self._place("manifest"), "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": place}}}
        if "createArtifactFiles" in query:
            nodes = [{"node": self._file(one)} for one in given["input"]["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": nodes}}}
        if "createArtifact(" in query:
            one = f"{_ARTEFACT}{len(self.artefacts)}"
            self.artefacts[one] = given["input"]
            made = {"id": one, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if "commitArtifact" in query:
            self.committed.append(given["artifactID"])
            digest = self.artefacts[given["artifactID"]]["digest"]
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": digest}}}
        if "markRunFilesUploaded" in query:
            return {"markRunFilesUploaded": {"success": True}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        return super().answer(query, given)

    def take(self, path: str, content: bytes) -> None:
        """A file's content, or lines of one that grows."""
        if path.startswith(_PLACE):
            self.files[path.removeprefix(_PLACE)] = content
            return
        for name, chunk in (json.loads(content).get("files") or {}).items():
            self.lines.setdefault(name, []).extend(chunk["content"])

    def _run(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        one = self.told.setdefault(name, {})
        one.update({key: value for key, value in given.items() if value is not None})
        project = {"id": "p", "name": given["project"], "entity": _TEAM}
        bucket = {"id": name, "name": name, "displayName": one.get("displayName", name), "project": project}
        bucket |= {"description": None, "config": one.get("config", "{}"), "sweepName": None, "historyLineCount": 0}
        return {"bucket": bucket, "inserted": True}

    def _file(self, one: dict[str, Any]) -> dict[str, Any]:
        name = f"artefact/{one['name']}"
        there = {"storagePath": name, "uploadUrl": self._place(name), "uploadHeaders": [], "uploadMultipartUrls": None}
        return there | {"artifact": {"id": one["artifactID"]}}

    def _place(self, name: str) -> str:
        return f"{self.address}{_PLACE}{name}"


_TEAM = {"id": "t", "name": "team"}


@dataclass
class SweepServer(Uploads):
    """A sweep that has one run.

    Attributes:
        sweep: what its YAML says.
        chosen: the run's parameters.
    """

    sweep: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    given_out: bool = False

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """Data that a query asks for."""
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "a"}}}
        if "agentHeartbeat" in query:
            arguments = {name: {"value": value} for name, value in self.chosen.items()}
            run = {"type": "run", "run_id": "chosen", "program": None, "args": arguments}
            over = [{"type": "exit"}] if given["runState"] == "{}" else []
            commands, self.given_out = over if self.given_out else [run], True
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}
        if "sweep(" in query:
            told = dict.fromkeys(("heartbeatAt", "updatedAt", "bestLoss", "controller", "scheduler", "description"))
            told |= {"id": "s", "name": given["sweep"], "state": "RUNNING", "config": json.dumps(self.sweep)}
            told |= {"method": self.sweep["method"], "createdAt": NOW, "earlyStopJobRunning": False}
            return {"project": {"sweep": told | {"runs": {"edges": []}}}}
        return super().answer(query, given)
