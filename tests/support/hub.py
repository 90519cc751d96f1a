"""A small Hugging Face hub on this machine: enough of its protocol for the `datasets` library."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

COMMIT = "c0ffee" + "0" * 34
_FILE = re.compile(r"/datasets/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")
_API = re.compile(
    r"/api/datasets/(?P<repository>[^/]+/[^/]+)(/(?P<what>revision|tree|paths-info)/[^/]+)?(/(?P<under>.+))?"
)


class Hub(ThreadingHTTPServer):
    """Serves the files of repositories.

    Attributes:
        repositories: for each `owner/name` its files by path.
        refused: paths that are answered by an error.
        asked: how often the contents of each path were asked for.
    """

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.refused: set[str] = set()
        self.asked: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """A hub that answers while the context lasts."""
    with Hub(repositories) as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path).path
        if found := _FILE.fullmatch(address):
            files = self.server.repositories.get(found["repository"], {})
            if found["path"] in files:
                self._send_file(found["path"], files[found["path"]])
                return
        elif (found := _API.fullmatch(address)) and found["repository"] in self.server.repositories:
            files = self.server.repositories[found["repository"]]
            if found["what"] == "paths-info":
                self._send_json(_entries(files, parse_qs(body.decode())["paths"]))
            elif found["what"] == "tree":
                under = f"{found['under']}/" if found["under"] else ""
                self._send_json(_entries(files, [path for path in files if path.startswith(under)]))
            else:
                self._send_json(
                    {"id": found["repository"], "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
                )
            return
        self._head(404, 0, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def _send_json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self._head(200, len(body), {"Content-Type": "application/json"})
        self.wfile.write(body)

    def _send_file(self, path: str, content: bytes) -> None:
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        refused = path in self.server.refused
        self._head(403 if refused else 200, 0 if refused else len(content), {"ETag": etag, "X-Repo-Commit": COMMIT})
        if self.command == "GET" and not refused:
            self.server.asked[path] += 1
            self.wfile.write(content)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _entries(files: Mapping[str, bytes], paths: list[str]) -> list[dict[str, object]]:
    """Files, and the folders that they are in, as the hub lists them."""
    folders = {path.rsplit("/", 1)[0] for path in paths if path in files and "/" in path}
    named = [path for path in paths if any(other.startswith(f"{path}/") for other in files)]
    return [
        *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted({*folders, *named})),
        *(
            {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}
            for path in paths
            if path in files
        ),
    ]
