"""A headless Chromium for tests, driven by the DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 120


def find_browser() -> str | None:
    """Returns the program that `AHNET_BROWSER` names, or the first Chromium on the PATH."""
    named = os.environ.get("AHNET_BROWSER")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One tab of a browser; records its console messages and network requests.

    Attributes:
      complaints: errors and warnings of the console, and uncaught exceptions.
      requests: requested addresses, that of the page included.
    """

    def __init__(self, program: str, folder: Path, size: tuple[int, int] = (1400, 1000)):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        options = [
            *("--headless", "--disable-gpu", "--no-first-run", "--disable-extensions"),
            *("--remote-debugging-port=0", "--remote-allow-origins=*"),
            *(f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}"),
        ]
        if os.geteuid() == 0:
            options.append("--no-sandbox")
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [program, *options, "about:blank"], stdout=quiet, stderr=quiet, start_new_session=True
        )
        port = folder / "DevToolsActivePort"
        end = time.monotonic() + TIMEOUT_S
        while not (port.is_file() and "\n" in port.read_text()):
            if self._process.poll() is not None or time.monotonic() > end:
                self.close()
                raise RuntimeError(f"{program} did not start")
            time.sleep(0.05)
        lines = port.read_text().splitlines()
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{lines[0]}{lines[1]}", timeout=TIMEOUT_S, suppress_origin=True
        )
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """Stops the browser with all of its processes."""
        if hasattr(self, "_socket"):
            self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def open(self, path: Path) -> None:
        """Opens a file and waits until its first case, if any, is drawn."""
        self.complaints.clear()
        self.requests.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("document.readyState === 'complete'")
        self.wait_for(
            "document.getElementById('viewer').hidden || document.body.dataset.open !== undefined"
        )

    def run(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not self.run(expression):
            if self.complaints or time.monotonic() > end:
                raise TimeoutError(f"{expression}; {self.complaints}")
            time.sleep(0.05)

    def centre(self, selector: str, share: tuple[float, float] = (0.5, 0.5)) -> tuple[float, float]:
        """Scrolls an element into view and returns the position of a point in it."""
        x, y = self.run(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            "element.scrollIntoView({block: 'center'});"
            "const box = element.getBoundingClientRect();"
            f"return [box.x + box.width * {share[0]}, box.y + box.height * {share[1]}]; }})()"
        )
        return x, y

    def click(self, selector: str, share: tuple[float, float] = (0.5, 0.5)) -> None:
        """Clicks on an element with the mouse."""
        x, y = self.centre(selector, share)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, selector: str, steps: int) -> None:
        """Turns the mouse wheel over an element."""
        x, y = self.centre(selector)
        for _ in range(abs(steps)):
            self.call(
                "Input.dispatchMouseEvent",
                type="mouseWheel",
                x=x,
                y=y,
                deltaX=0,
                deltaY=100 if steps > 0 else -100,
            )

    def key(self, name: str) -> None:
        """Presses a key."""
        text = name if len(name) == 1 else ("\r" if name == "Enter" else "")
        codes = {"Enter": 13, "Tab": 9, "ArrowUp": 38, "ArrowDown": 40, "Home": 36, "End": 35}
        event = {"key": name, "windowsVirtualKeyCode": codes.get(name, 0)}
        down = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def slide(self, selector: str, value: float) -> None:
        """Sets a slider or a selection like a user."""
        self.run(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            f"element.value = {json.dumps(value)};"
            "for (const name of ['input', 'change']) element.dispatchEvent(new Event(name)); })()"
        )

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Writes a PNG of the visible part, or of the whole page."""
        answer = self.call(
            "Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole)
        )
        path.write_bytes(base64.b64decode(answer["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**{k: size[k] for k in ("x", "y", "width", "height")}, "scale": 1}}

    def _note(self, event: dict[str, Any]) -> None:
        method, content = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(content["exceptionDetails"])[:1000])
        elif method == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(content["args"])[:1000])
        elif method == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            text = content["entry"]["text"]
            # Only the tests read pixels back.
            if "willReadFrequently" not in text:
                self.complaints.append(text)
