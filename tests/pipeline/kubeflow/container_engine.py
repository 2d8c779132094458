"""Stands in for the Docker engine: answers the part of its HTTP API by which `kfp.local` runs containers.

A container is a process of this machine, in this environment: nothing is pulled, mounted or isolated.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pipeline.kubeflow.containers import Start

API_VERSION = "1.43"


@contextlib.contextmanager
def serve_containers(image: str, start: Start, logs: Path) -> Iterator[str]:
    """Serves an engine that has one image; yields its address, for `DOCKER_HOST`.

    Args:
      start: runs a command with an environment and a log file, and returns its exit code.
      logs: folder for the logs, named by the number of the container.
    """
    containers: list[_Container] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self._words():
                case ["version"]:
                    self._answer({"ApiVersion": API_VERSION})
                case ["info"]:
                    self._answer({"SecurityOptions": []})
                case ["images", "json"]:
                    self._answer([IMAGE])
                case ["images", _, "json"]:
                    self._answer(IMAGE)
                case ["containers", number, "json"]:
                    settings = {"Tty": False, "Image": image}
                    self._answer({"Id": number, "Config": settings})
                case ["containers", number, "logs"]:
                    self._answer(b"")
                    output = containers[int(number)].output()
                    if output:
                        # A frame of the multiplexed stream: its kind, three zeros, its length.
                        self.wfile.write(struct.pack(">BxxxL", 1, len(output)) + output)
                case _:
                    self.send_error(404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            match self._words():
                case ["containers", "create"]:
                    log = logs / f"{len(containers)}.log"
                    containers.append(_Container(json.loads(body), start, log))
                    self._answer({"Id": str(len(containers) - 1), "Warnings": []}, 201)
                case ["containers", number, "start"]:
                    containers[int(number)].start()
                    self._answer(b"", 204)
                case ["containers", number, "wait"]:
                    containers[int(number)].join()
                    self._answer({"StatusCode": containers[int(number)].code})
                case _:
                    self.send_error(404)

        def _words(self) -> list[str]:
            return self.path.partition("?")[0].removeprefix(f"/v{API_VERSION}").split("/")[1:]

        def _answer(self, content: object, status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(
                content if isinstance(content, bytes) else json.dumps(content).encode()
            )

        def log_message(self, *_: object) -> None:
            """Prints no line for each request."""

    IMAGE = {"Id": "sha256:0", "RepoTags": [image], "RepoDigests": []}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"tcp://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Container(threading.Thread):
    """The process of a container; `code` is its exit code when the thread has ended."""

    def __init__(self, settings: dict, start: Start, log: Path):
        super().__init__(daemon=True)
        self._settings, self._start, self._log = settings, start, log
        self.code = 70

    def run(self) -> None:
        own = dict(each.split("=", 1) for each in self._settings.get("Env") or ())
        self.code = self._start(self._settings["Cmd"], os.environ | own, self._log)

    def output(self) -> bytes:
        """Waits for the end and returns all output."""
        self.join()
        return self._log.read_bytes() if self._log.exists() else b""
