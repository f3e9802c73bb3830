"""A Hub on this machine: enough of its protocol for the real huggingface_hub client to push, load and be refused.

    with hub_server() as hub:
        HfApi(endpoint=hub.url, token=TOKEN).create_repo("org/model")

Repositories, files and commits live in memory. Commits are whole or nothing, as on the Hub: large files arrive first,
by their hash, and no repository shows them until a commit names them. Datasets can be read only; their repositories
are named datasets/ORG/NAME.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

import yaml

TOKEN = "hf_" + "t" * 34  # of someone who may write to org/ and user/
READ_TOKEN = "hf_" + "r" * 34  # may read everything and write nothing
LARGE = (".safetensors", ".png", ".bin")  # what the Hub stores by LFS


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: list[dict] = field(default_factory=list)  # {"sha", "summary", "parent", "files"}

    @property
    def sha(self) -> str:
        return self.commits[-1]["sha"]

    def commit(self, summary: str, files: dict[str, bytes]) -> str:
        parent = self.commits[-1]["sha"] if self.commits else None
        said = json.dumps([summary, parent, {name: _git_oid(content) for name, content in sorted(files.items())}])
        self.files = files
        self.commits.append(
            {"sha": hashlib.sha1(said.encode()).hexdigest(), "summary": summary, "parent": parent, "files": files}
        )
        return self.sha

    def at(self, revision: str) -> dict | None:
        """The commit that a branch or hash names."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit["sha"] == revision), None)


@dataclass
class Fault:
    """What goes wrong at the requests whose method and path match `where`, `times` times: "drop" the connection after
    half of the body, drop it after having done what was asked ("drop_answer"), answer with a status code, or keep the
    sender waiting until it is gone: after half of the body ("stall") or all that was asked ("stall_answer")."""

    where: str
    what: str | int
    times: int = 1_000


class Hub:
    def __init__(self, url: str):
        self.url = url
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.stalled = threading.Event()  # somebody is kept waiting
        self.lock = threading.RLock()

    def create(self, repo_id: str, private: bool = False, files: dict[str, bytes] | None = None) -> Repository:
        repository = self.repositories[repo_id] = Repository(private)
        repository.commit("initial commit", repository.files | (files or {}))
        return repository

    def fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.where, request):
                fault.times -= 1
                return fault
        return None


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    # --- one request -------------------------------------------------------------------------------------

    def handle_request(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        request = f"{self.command} {path}"
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = self.hub.fault(request)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.what == "drop":
            self.rfile.read(length // 2)
            self.drop()
            return
        if fault and fault.what == "stall":
            self.rfile.read(length // 2)
            self.stall()
            return
        body = self.rfile.read(length) if length else self.chunks()
        if fault and isinstance(fault.what, int):
            self.answer({"error": "the server failed"}, fault.what)
            return
        try:
            with self.hub.lock:
                answer = self.route(path, body)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.answer({"error": refusal.message}, refusal.status, headers)
            return
        if fault and fault.what == "drop_answer":
            self.drop()
        elif fault and fault.what == "stall_answer":
            self.stall()
        else:
            self.answer(*answer if isinstance(answer, tuple) else (answer,))

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def chunks(self) -> bytes:
        """A body of unknown length."""
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return b""
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def stall(self) -> None:
        self.close_connection = True
        self.hub.stalled.set()
        with contextlib.suppress(OSError):
            while self.rfile.read1(1 << 16):
                pass

    def drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def answer(self, content, status: int = 200, headers: dict | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        pass

    # --- who asks for what -------------------------------------------------------------------------------

    def route(self, path: str, body: bytes):
        for method, pattern, handler in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                parts = {name: urllib.parse.unquote(part) for name, part in found.groupdict().items() if part}
                return handler(self, body, **parts)
        raise Refusal(404, f"no {self.command} {path}", "EntryNotFound")

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def known(self) -> None:
        if self.token not in (None, TOKEN, READ_TOKEN):
            raise Refusal(401, "Invalid credentials in Authorization header")

    def may_write(self, repo_id: str) -> None:
        self.known()
        if self.token is None:
            raise Refusal(401, "Invalid username or password.")
        if self.token != TOKEN or repo_id.split("/")[0] not in ("org", "user"):
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")

    def repository(self, repo_id: str) -> Repository:
        self.known()
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self.token is None):
            raise Refusal(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return repository

    # --- what the Hub does -------------------------------------------------------------------------------

    def who(self, body):
        self.known()
        if self.token is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", "name": "user", "orgs": [{"name": "org"}]}

    def create(self, body):
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or 'user'}/{asked['name']}"
        self.may_write(repo_id)
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repositories:
            return {"error": "You already created this model repo", "url": url}, 409
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.create(repo_id, private)
        return {"url": url, "name": repo_id}

    def validate_yaml(self, body):
        page = json.loads(body)["content"]
        errors = []
        try:
            metadata = yaml.safe_load(page.split("---\n")[1])
            if not isinstance(metadata.get("model-index", []), list):
                errors.append({"message": '"model-index" must be an array'})
        except (yaml.YAMLError, IndexError, AttributeError) as error:
            errors.append({"message": f"invalid YAML: {error}"})
        return {"errors": errors, "warnings": []}, 400 if errors else 200

    def info(self, body, repo_id, revision="main"):
        repository = self.repository(repo_id)
        commit = self.commit_at(repository, revision)
        siblings = [{"rfilename": name} for name in sorted(commit["files"])]
        return {
            "_id": repo_id,
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit["sha"],
            "private": repository.private,
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }

    def tree(self, body, repo_id, revision):
        commit = self.commit_at(self.repository(repo_id), revision)
        return [{"type": "file", "path": name, **_described(name, file)} for name, file in commit["files"].items()]

    def preupload(self, body, repo_id, revision):
        self.may_write(repo_id)
        present = self.repository(repo_id).files
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": _described(file["path"], present[file["path"]])["oid"] if file["path"] in present else None,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def batch(self, body, repo_id):
        self.may_write(repo_id)
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large_files:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/storage/{wanted['oid']}"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def store(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "the content is not what its hash says")
        self.hub.large_files[oid] = body
        return b""

    def commit(self, body, repo_id, revision):
        self.may_write(repo_id)
        repository = self.repository(repo_id)
        lines = [json.loads(line) for line in body.splitlines() if line]
        files, header = dict(repository.files), {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                header = value
                if value.get("parentCommit", repository.sha) != repository.sha:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise Refusal(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(header["summary"], files)
        return {
            "success": True,
            "commitOid": sha,
            "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}",
            "pullRequestUrl": None,
        }

    def resolve(self, body, repo_id, revision, name):
        commit = self.commit_at(self.repository(repo_id), revision)
        if name not in commit["files"]:
            raise Refusal(404, f"Entry not found: {name}", "EntryNotFound")
        content = commit["files"][name]
        headers = {"X-Repo-Commit": commit["sha"], "ETag": f'"{_described(name, content)["oid"]}"'}
        return content, 200, headers

    def dataset_info(self, body, repo_id, revision="main"):
        return self.info(body, f"datasets/{repo_id}", revision)

    def dataset_tree(self, body, repo_id, revision, folder=""):
        prefix = f"{folder}/" if folder else ""
        files = self.tree(body, f"datasets/{repo_id}", revision)
        folders = {parent.as_posix() for file in files for parent in PurePosixPath(file["path"]).parents} - {"."}
        entries = files + [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]
        inside = [entry for entry in entries if entry["path"].startswith(prefix)]
        if not inside:
            raise Refusal(404, f"no folder {folder}", "EntryNotFound")
        if "recursive=true" in self.path.lower():
            return inside
        return [entry for entry in inside if "/" not in entry["path"].removeprefix(prefix)]

    def dataset_file(self, body, repo_id, revision, name):
        content, status, headers = self.resolve(body, f"datasets/{repo_id}", revision, name)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return content, status, headers
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        return content[start : end + 1], 206, headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"}

    def commit_at(self, repository: Repository, revision: str) -> dict:
        commit = repository.at(revision)
        if commit is None:
            raise Refusal(404, f"Revision not found: {revision}", "RevisionNotFound")
        return commit


REPOSITORY = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable]] = [
    ("GET", "/api/whoami-v2", Handler.who),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", rf"/api/models/{REPOSITORY}", Handler.info),
    ("GET", rf"/api/models/{REPOSITORY}/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", rf"/api/models/{REPOSITORY}/tree/(?P<revision>[^/]+)/?", Handler.tree),
    ("POST", rf"/api/models/{REPOSITORY}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", rf"/{REPOSITORY}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", Handler.store),
    ("POST", rf"/api/models/{REPOSITORY}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("GET", rf"/api/datasets/{REPOSITORY}", Handler.dataset_info),
    ("GET", rf"/api/datasets/{REPOSITORY}/revision/(?P<revision>[^/]+)", Handler.dataset_info),
    ("GET", rf"/api/datasets/{REPOSITORY}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", Handler.dataset_tree),
    ("GET HEAD", rf"/datasets/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Handler.dataset_file),
    ("GET HEAD", rf"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Handler.resolve),
]


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _described(name: str, content: bytes) -> dict:
    """Size and hash as the Hub gives them: of large files the hash that LFS goes by."""
    oid = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else _git_oid(content)
    return {"oid": oid, "size": len(content)}


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """A running Hub at `hub.url`, with none of the real one's data."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("HandlerOfOneHub", (Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
