"""A hub on this machine, in memory: as much of its API as the client asks for when it fetches and pushes models.

Whoever has the token `mine` may write under `me`; `theirs` may read what is public. Nobody else may do anything but
that without a token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".onnx", ".npz")  # these go the way of large files


class Refusal(Exception):
    """An answer that is none: status, what the hub says of it in its headers, and in its body."""

    def __init__(self, status, code="", message="", **body):
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


class Repository:
    """Commits by their hash, each a whole table of files; branches are names of some of them."""

    def __init__(self, private=False, gated=False):
        self.private, self.gated = private, gated
        self.commits, self.branches = {}, {}
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, branch, changes, removed=()):
        files = {**self.files(branch), **changes} if branch in self.branches else dict(changes)
        for name in removed:
            del files[name]
        sha = hashlib.sha1(f"{len(self.commits)} {branch}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def sha(self, revision):
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def files(self, revision="main"):
        return self.commits[self.sha(revision)]


class FakeHub:
    """`with FakeHub() as hub:` serves at hub.url. `asked` is what came in, `hangs` lets it answer to nothing any more,
    `status` is answered to everything, where it is set."""

    def __init__(self):
        self.repositories, self.large, self.asked = {}, {}, []
        self.hangs, self.status, self.warning = False, 0, ""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self):
                hub._serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = _answer

            def log_message(self, *words):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda request, address: None  # of clients that gave up and went
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def fetched(self):
        """The files that were asked for and sent, in order."""
        return [path.split("/", 5)[5] for method, path in self.asked if method == "GET" and "/resolve/" in path]

    def _serve(self, request):
        while self.hangs:
            time.sleep(0.05)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = urlsplit(request.path).path
        self.asked.append((request.command, path))
        user = {"Bearer mine": "me", "Bearer theirs": "you"}.get(request.headers.get("Authorization", ""), "")
        headers = {}
        try:
            if self.status:
                raise Refusal(self.status)
            if request.headers.get("Authorization") and not user:
                raise Refusal(401, message="Invalid credentials in Authorization header")
            status, content, headers = 200, *self._route(request.command, path, user, body)
        except Refusal as refusal:
            status, content = refusal.status, json.dumps({"error": refusal.message, **refusal.body}).encode()
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def _route(self, method, path, user, body):
        parts = [unquote(part) for part in path.strip("/").split("/")]  # in a branch's name may be a quoted /
        if parts == [""]:
            return b"", {}
        if parts[0] == "large":
            self.large[parts[1]] = body
            return b"", {}
        if parts[:2] == ["api", "validate-yaml"]:
            return _json(self._validated(json.loads(body)["content"]))
        if parts[:3] == ["api", "repos", "create"]:
            return _json(self._created(json.loads(body), user))
        if parts[0] == "api":
            return self._api("/".join(parts[2:4]), parts[4:], user, body)
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            self._found(f"{parts[0]}/{parts[1].removesuffix('.git')}", user, writing=True)
            return _json({"objects": [self._place(one) for one in json.loads(body)["objects"]]})
        repository = self._found("/".join(parts[:2]), user)
        return self._file(repository, parts[3], "/".join(parts[4:]))

    def _api(self, name, rest, user, body):
        writing = rest[:1] in (["preupload"], ["commit"], ["branch"])
        repository = self._found(name, user, writing)
        if not rest or rest[0] == "revision":
            sha = repository.sha(rest[1] if rest else "main")
            siblings = [{"rfilename": file} for file in repository.commits[sha]]
            return _json({"id": name, "sha": sha, "private": repository.private, "siblings": siblings})
        if rest[0] == "tree":
            return _json([_entry(file, content) for file, content in repository.files(rest[1]).items()])
        if rest[0] == "branch":
            if rest[1] in repository.branches:
                raise Refusal(409)
            repository.branches[rest[1]] = repository.branches["main"]
            return _json({})
        if rest[0] == "preupload":
            repository.sha(rest[1])
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = {file: "lfs" if file.endswith(LARGE) else "regular" for file in files}
            return _json({"files": [{"path": f, "uploadMode": m, "shouldIgnore": False} for f, m in modes.items()]})
        assert rest[0] == "commit"
        sha = self._committed(repository, rest[1], [json.loads(line) for line in body.splitlines()])
        return _json({"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha})

    def _committed(self, repository, branch, lines):
        changes, removed = {}, []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                removed.append(value["path"])
        return repository.commit(branch, changes, removed)

    def _created(self, asked, user):
        name = f"{asked['organization']}/{asked['name']}"
        if not user:
            raise Refusal(401)
        if user != asked["organization"]:
            raise Refusal(403, message="You don't have the rights to create a model under this namespace")
        if name in self.repositories:
            raise Refusal(409, message="You already created this model repo", url=f"{self.url}/{name}")
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return {"url": f"{self.url}/{name}"}

    def _validated(self, card):
        if "license: nonsense" in card:
            raise Refusal(400, errors=[{"message": '"license" must be one of [...]'}])
        return {"errors": [], "warnings": [{"message": self.warning}] if self.warning else []}

    def _found(self, name, user, writing=False):
        repository = self.repositories.get(name)
        mine = user == name.partition("/")[0]
        if repository is None or (repository.private and not mine):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if repository.gated and not mine:
            raise Refusal(403, "GatedRepo", "Access to this model is restricted")
        if writing and not mine:
            raise Refusal(403, message="Forbidden: you must use a write token")
        return repository

    def _place(self, one):
        actions = {"upload": {"href": f"{self.url}/large/{one['oid']}"}}
        return {**one, "actions": actions} if one["oid"] not in self.large else one

    def _file(self, repository, revision, file):
        sha = repository.sha(revision)
        if file not in repository.commits[sha]:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        content = repository.commits[sha][file]
        return content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": sha}


def _entry(file, content):
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _json(data):
    return json.dumps(data).encode(), {"Content-Type": "application/json"}
