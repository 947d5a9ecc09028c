"""A local stand-in for the Hugging Face hub, with the endpoints that uploads and downloads use."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import transformers.utils.hub
import yaml
from huggingface_hub import constants

TOKEN = "hf_of_someone"
LARGE = (".safetensors", ".bin", ".pt")
"""Ends of the names of files that are stored by Git LFS."""
Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body of a response."""


def said(content, status: int = 200) -> Reply:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


class RefusedError(Exception):
    """A request is refused; holds the reply."""

    def __init__(self, code: str, **headers: str):
        self.reply: Reply = (404, {"X-Error-Code": code, **headers}, b"{}")


@dataclass
class Repository:
    """The files of each branch, and the messages of all commits."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str) -> str:
        """Return the id of a branch's last commit: 40 digits, made of its files."""
        return hashlib.sha1(repr(sorted(self.branches[branch].items())).encode()).hexdigest()


@dataclass
class Hub:
    """The hub's repositories by name, and its large files by digest."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)

    def publish(self, folder: Path, name: str) -> None:
        """Put the files of a folder into a new public repository."""
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
        self.repositories[name] = Repository(branches={"main": files})

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[name].branches[branch]

    def be_the_hub(self, monkeypatch, cache: Path, token: str = TOKEN) -> None:
        """Let this process reach this hub in place of the real one, as a new process would with
        the environment variables of `run`.
        """
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # it knows another hub's URL
        monkeypatch.setenv("HF_TOKEN", token)

    def run(self, code: str, home: Path, token: str = TOKEN) -> str:
        """Return what a new Python process prints that runs `code` with this hub.

        Args:
            home: the process's working folder, with its cache of the hub.
            token: the user's token.
        """
        home.mkdir(parents=True, exist_ok=True)
        known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "cache"),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",  # Xet's storage is another service
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**known, **settings},
            capture_output=True,
            text=True,
            cwd=home,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@dataclass
class Request:
    """A request of a client, as the hub reads it."""

    hub: Hub
    body: bytes
    query: dict[str, list[str]]
    token: str | None

    @property
    def json(self):
        return json.loads(self.body)

    def read(self, name: str, revision: str) -> tuple[dict[str, bytes], str]:
        """Return the files of a repository's branch or commit, and the id of the commit.

        Raises:
            RefusedError: there is none that the client may see.
        """
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.token != TOKEN):
            raise RefusedError("RepoNotFound")
        for branch, files in found.branches.items():
            if revision in (branch, found.commit(branch)):
                return files, found.commit(branch)
        raise RefusedError("RevisionNotFound")


# --- endpoints: methods and paths, and the functions that answer them


def create(request: Request) -> Reply:
    wanted = request.json
    name = f"{wanted['organization']}/{wanted['name']}"
    if name in request.hub.repositories:
        return said({"url": f"{request.hub.url}/{name}", "error": "It exists"}, 409)
    request.hub.repositories[name] = Repository(wanted.get("visibility") == "private")
    return said({"url": f"{request.hub.url}/{name}"})


def validate(request: Request) -> Reply:
    """Check a card's metadata, as far as the hub's errors about them are known."""
    found = re.match(r"---\n(.*?)\n---\n", request.json["content"], re.DOTALL)
    metadata = yaml.safe_load(found[1]) if found else {}
    errors = [
        f'"{name}" must be a string'
        for name in ("license", "library_name", "pipeline_tag")
        if not isinstance(metadata.get(name, ""), str)
    ]
    listed = [{"message": error} for error in errors]
    return said({"errors": listed, "warnings": []}, 400 if errors else 200)


def branch(request: Request, name: str, revision: str) -> Reply:
    branches = request.hub.repositories[name].branches
    if revision in branches:
        return said({"error": "Reference already exists"}, 409)
    branches[revision] = dict(branches["main"])
    return said({})


def preupload(request: Request, name: str, revision: str) -> Reply:
    request.read(name, revision)
    paths = [file["path"] for file in request.json["files"]]
    modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
    return said(
        {
            "files": [
                {"path": path, "uploadMode": mode, "shouldIgnore": False}
                for path, mode in modes.items()
            ]
        }
    )


def batch(request: Request, name: str) -> Reply:
    objects = [
        {**each, "actions": {"upload": {"href": f"{request.hub.url}/lfs/{each['oid']}"}}}
        for each in request.json["objects"]
    ]
    return said({"transfer": "basic", "objects": objects})


def store(request: Request, digest: str) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != digest:
        return said({"error": "wrong digest"}, 400)
    request.hub.large[digest] = request.body
    return said({})


def commit(request: Request, name: str, revision: str) -> Reply:
    found, pull = request.hub.repositories[name], {}
    if request.query.get("create_pr") == ["1"]:
        number = sum(each.startswith("refs/pr/") for each in found.branches) + 1
        found.branches[f"refs/pr/{number}"] = dict(found.branches[revision])
        revision = f"refs/pr/{number}"
        pull = {"pullRequestUrl": f"{request.hub.url}/{name}/discussions/{number}"}
    files = found.branches[revision]
    for line in map(json.loads, request.body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            found.messages.append(value["summary"])
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = request.hub.large[value["oid"]]
    at = found.commit(revision)
    return said({"commitUrl": f"{request.hub.url}/{name}/commit/{at}", "commitOid": at, **pull})


def info(request: Request, name: str, revision: str = "main") -> Reply:
    files, at = request.read(name, revision)
    return said({"id": name, "sha": at, "siblings": [{"rfilename": file} for file in files]})


def tree(request: Request, name: str, revision: str) -> Reply:
    return said(
        [
            {"type": "file", "path": path, "size": len(file), "oid": hashlib.sha1(file).hexdigest()}
            for path, file in request.read(name, revision)[0].items()
        ]
    )


def resolve(request: Request, name: str, revision: str, path: str) -> Reply:
    files, at = request.read(name, revision)
    if path not in files:
        raise RefusedError("EntryNotFound", **{"X-Repo-Commit": at})
    digest = hashlib.sha1(files[path]).hexdigest()
    return 200, {"X-Repo-Commit": at, "ETag": f'"{digest}"'}, files[path]


NAME = r"(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ENDPOINTS: dict[str, Callable[..., Reply]] = {
    "POST /api/repos/create": create,
    "POST /api/validate-yaml": validate,
    f"POST /api/models/{NAME}/branch/{REVISION}": branch,
    f"POST /api/models/{NAME}/preupload/{REVISION}": preupload,
    f"POST /{NAME}.git/info/lfs/objects/batch": batch,
    "PUT /lfs/(?P<digest>[0-9a-f]{64})": store,
    f"POST /api/models/{NAME}/commit/{REVISION}": commit,
    f"GET /api/models/{NAME}": info,
    f"GET /api/models/{NAME}/revision/{REVISION}": info,
    f"GET /api/models/{NAME}/tree/{REVISION}": tree,
    f"GET /{NAME}/resolve/{REVISION}/(?P<path>.+)": resolve,
}
OPEN = (validate, store)
"""Endpoints that write nothing of a repository, and need no token."""


class Handler(BaseHTTPRequestHandler):
    """Answers requests for the hub of its server."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        asked = f"{self.command.replace('HEAD', 'GET')} {place.path}"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.server.hub, body, parse_qs(place.query), token)
        status, headers, content = self.answer(request, asked)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 (the names that http.server calls)

    def answer(self, request: Request, asked: str) -> Reply:
        for pattern, endpoint in ENDPOINTS.items():
            found = re.fullmatch(pattern, asked)
            if found is None:
                continue
            if self.command in ("POST", "PUT") and endpoint not in OPEN and request.token != TOKEN:
                return said({"error": "Invalid username or password."}, 401)
            parts = {name: unquote(part) for name, part in found.groupdict().items()}
            try:
                return endpoint(request, **parts)
            except RefusedError as error:
                return error.reply
        return said({"error": f"the stand-in has no endpoint for {asked}"}, 404)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def hub() -> Iterator[Hub]:
    """Run a hub without repositories."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        try:
            yield server.hub
        finally:
            server.shutdown()
