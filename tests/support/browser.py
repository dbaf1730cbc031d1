"""Pages as a browser shows them: headless Chromium, by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESKTOP, PHONE = 1280, 390

# what is wider than the window, unless a box around it scrolls, and what is not shown
_PROBLEMS = """
(() => {
  const edge = document.documentElement.clientWidth;
  const scrolls = (element) => {
    for (let box = element.parentElement; box && box !== document.body; box = box.parentElement) {
      if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return true;
    }
    return false;
  };
  const named = (element) => `${element.tagName.toLowerCase()} "${element.textContent.trim().slice(0, 40)}"`;
  const found = [];
  if (document.scrollingElement.scrollWidth > edge) found.push("the page is wider than its window");
  for (const element of document.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect();
    // a closed menu lies next to the window
    if (box.width && box.left < edge && box.right > edge + 1 && !scrolls(element)) {
      found.push(`beyond the edge: ${named(element)}`);
    }
  }
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) found.push(`not shown: ${image.getAttribute("src").slice(0, 80)}`);
  }
  for (const equation of document.querySelectorAll("math")) {
    const box = equation.getBoundingClientRect();
    if (equation.checkVisibility() && !(box.width && box.height)) found.push(`not shown: ${named(equation)}`);
  }
  return found.slice(0, 10);
})()
"""


class Tab:
    """A page in the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0

    async def show(self, url: str, width: int, dark: bool = False) -> None:
        """Load a page in a window of a width in pixels, which is that of a phone if it is narrow."""
        phone = width < 600
        await self._call("Page.enable")
        await self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._call("Emulation.setEmulatedMedia", features=[scheme])
        await self._call("Page.navigate", url=url)
        while (await self._receive()).get("method") != "Page.loadEventFired":
            pass

    async def problems(self) -> list[str]:
        """Return what is wider than the window, and which pictures and equations are not shown."""
        found: list[str] = await self._value(_PROBLEMS)
        return found

    async def picture(self, path: Path, longest: int = 16000) -> None:
        """Write the page as a PNG file, of at most this many pixels of the page in height."""
        width, height = await self._value("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, longest), "scale": 1}
        taken = await self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))

    async def _value(self, expression: str) -> Any:
        answer = await self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": parameters})
        while (answer := await self._receive()).get("id") != self._calls:
            pass
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await self._socket.receive()).data)
        return message


@asynccontextmanager
async def chromium() -> AsyncIterator[Tab]:
    """Start the browser and yield its tab."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *options,
            f"--user-data-dir={folder}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert browser.stderr is not None
            # "DevTools listening on ws://127.0.0.1:PORT/devtools/browser/ID"
            while b"DevTools listening on ws://" not in (line := await browser.stderr.readline()):
                assert line, "the browser did not start"
            address = line.split(b"ws://")[1].split(b"/")[0].decode()
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{address}/json") as answer:
                    (tab,) = (tab for tab in await answer.json() if tab["type"] == "page")
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            browser.terminate()
            await browser.communicate()
