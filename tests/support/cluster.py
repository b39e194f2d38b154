"""Enough of Kubernetes' API for kubectl to create things, and to change them.

It keeps what it is given if that follows Kubernetes' schemas, as far as kubernetes-validate knows them, and refuses the
rest. Nothing comes of it: there is no scheduler, and there are no nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.support.netns import Namespace

_VERBS = ["create", "get", "patch"]
_NAMESPACES = {"name": "namespaces", "kind": "Namespace", "namespaced": False, "singularName": "", "verbs": _VERBS}
_DAEMONSETS = {"name": "daemonsets", "kind": "DaemonSet", "namespaced": True, "singularName": "", "verbs": _VERBS}
_APPS = {"groupVersion": "apps/v1", "version": "v1"}
_DISCOVERY: dict[str, Any] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [_NAMESPACES]},
    "/apis": {"kind": "APIGroupList", "groups": [{"name": "apps", "versions": [_APPS], "preferredVersion": _APPS}]},
    "/apis/apps/v1": {"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": [_DAEMONSETS]},
}
_COLLECTIONS = ("/api/v1/namespaces", "/apis/apps/v1/namespaces/*/daemonsets")
_CONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "stand-in", "cluster": {"server": ""}}],
    "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in"}}],
    "current-context": "stand-in",
}


class Cluster:
    """The API's server on a namespace's loopback; entering starts it, leaving stops it.

    Args:
        namespace: where.
        config: where to write what kubectl has to know to find it.

    Attributes:
        objects: what there is, by its path in the API.
    """

    def __init__(self, namespace: Namespace, config: Path) -> None:
        self.objects: dict[str, Any] = {}
        listener = namespace.make_socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        host, port = listener.getsockname()
        self._server = HTTPServer(
            (host, port), type("_Handler", (_Handler,), {"cluster": self}), bind_and_activate=False
        )
        self._server.socket.close()
        self._server.socket = listener
        clusters = [{"name": "stand-in", "cluster": {"server": f"http://{host}:{port}"}}]
        config.write_text(json.dumps({**_CONFIG, "clusters": clusters}))

    def __enter__(self) -> Cluster:
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, verb: str, path: str, given: Any) -> tuple[int, Any]:
        """HTTP's status, and an object."""
        if verb == "GET" and path in _DISCOVERY:
            return 200, _DISCOVERY[path]
        if verb == "GET" and path in self.objects:
            return 200, self.objects[path]
        if verb == "PATCH" and path in self.objects:
            merge(self.objects[path], given)
            return 200, self.objects[path]
        if verb == "POST" and any(Path(path).match(each) for each in _COLLECTIONS):
            return self._create(path, given)
        return _failure(404, "NotFound", f"there is no {path}")

    def _create(self, path: str, given: Any) -> tuple[int, Any]:
        import kubernetes_validate

        space = path.removeprefix("/apis/apps/v1").removesuffix("/daemonsets")
        if space != path and f"/api/v1{space}" not in self.objects:
            return _failure(404, "NotFound", f"there is no {space}")
        try:
            kubernetes_validate.validate(given, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            return _failure(422, "Invalid", error.message)
        self.objects[f"{path}/{given['metadata']['name']}"] = given
        return 201, given


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    cluster: Cluster

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path == "/openapi/v2":
            # An empty document: what kubectl finds no schema for it leaves to the server.
            self._say(200, b"", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
            return
        given = decoded(body) if body else None
        status, said = self.cluster.answer(self.command, path, given)
        self._say(status, json.dumps(said).encode(), "application/json")

    do_GET = do_POST = do_PATCH = _answer

    def _say(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _failure(code: int, reason: str, message: str) -> tuple[int, Any]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return code, {**status, "reason": reason, "message": message}


def merge(into: Any, patch: Any) -> None:
    """RFC 7386."""
    for name, value in patch.items():
        if isinstance(value, dict):
            merge(into.setdefault(name, {}), value)
        elif value is None:
            into.pop(name, None)
        else:
            into[name] = value


def decoded(body: bytes) -> Any:
    """An object, of JSON, or of Kubernetes' protobuf, which newer kubectl uses where it has no file before it.

    Of the latter no more than what a new namespace is made of.
    """
    if not body.startswith(b"k8s\0"):
        found = json.loads(body)
        # kubectl's own types say this of what nobody has created; the schema does not know it.
        if found.get("metadata", {}).get("creationTimestamp", ...) is None:
            del found["metadata"]["creationTimestamp"]
        return found
    # message Unknown { TypeMeta typeMeta = 1; bytes raw = 2; … } of runtime/generated.proto
    unknown = dict(_fields(body[4:]))
    kind = dict(_fields(unknown[1]))
    metadata = dict(_fields(dict(_fields(unknown[2]))[1]))
    return {"apiVersion": kind[1].decode(), "kind": kind[2].decode(), "metadata": {"name": metadata[1].decode()}}


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the fields that have a length, all below 128 bytes; others are left out."""
    at = 0
    while at < len(message):
        number, wire = message[at] >> 3, message[at] & 7
        length = message[at + 1] if wire == 2 else 0
        at += 2 + length
        if wire == 2:
            yield number, message[at - length : at]
