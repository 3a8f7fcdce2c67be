"""A hub of one process: what huggingface_hub asks of huggingface.co, answered from memory."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub

TOKEN = "hf_right"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with its files; `requests` lists what was asked, `down` answers everything with 503."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}  # large files, by their SHA-256
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str) -> str:
        """Changes with the files, as git's does."""
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[name].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def answer(self, content: object = b"", code: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith("/stored/"):
            return self.store(path, body)
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        if path == "/api/validate-yaml":
            errors = [{"message": '"license" must be one of [mit]'}] if b"license: nonsense" in body else []
            return self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        owner, name, *rest = path.removeprefix("/api/models/").strip("/").removesuffix(".git").split("/")
        repository = f"{owner}/{name.removesuffix('.git')}"
        if repository not in self.server.repositories:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return getattr(self, f"repository_{rest[0]}")(repository, rest[1:], body)

    do_GET = do_HEAD = do_POST = do_PUT = route

    def store(self, path: str, body: bytes) -> None:
        self.server.stored[path.rpartition("/")[2]] = body
        self.answer()

    def create(self, asked: dict) -> None:
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if name.startswith("other/"):
            return self.answer({"error": "You don't have the rights to create a model under other"}, 403)
        code = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, {})
        return self.answer({"url": f"{self.server.url}/{name}", "name": name}, code)

    def repository_revision(self, name: str, rest: list[str], _: bytes) -> None:
        if rest[0] not in ("main", self.server.commit(name)):
            return self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        files = [{"rfilename": path} for path in self.server.repositories[name]]
        return self.answer({"id": name, "sha": self.server.commit(name), "siblings": files})

    def repository_tree(self, name: str, *_) -> None:
        files = self.server.repositories[name].items()
        self.answer(
            [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files
            ]
        )

    def repository_resolve(self, name: str, rest: list[str], _: bytes) -> None:
        content = self.server.repositories[name].get("/".join(rest[1:]))
        if content is None:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(content, ETag=etag, X_Repo_Commit=self.server.commit(name))

    def repository_preupload(self, _: str, __: list[str], body: bytes) -> None:
        files = json.loads(body)["files"]
        modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
        answers = [
            {"path": f["path"], "uploadMode": mode, "shouldIgnore": False} for f, mode in zip(files, modes, strict=True)
        ]
        self.answer({"files": answers})

    def repository_info(self, _: str, __: list[str], body: bytes) -> None:
        """Of /info/lfs/objects/batch."""
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/stored/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def repository_commit(self, name: str, _: list[str], body: bytes) -> None:
        import base64

        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.repositories[name][value["path"]] = self.server.stored[value["oid"]]
        commit = self.server.commit(name)
        self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})


@contextmanager
def emulated(patch, cache):
    """A hub that huggingface_hub talks to in this process, with a cache of its own."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        constants = huggingface_hub.constants
        for key, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            patch.setattr(constants, key, value)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub
        hub.shutdown()
