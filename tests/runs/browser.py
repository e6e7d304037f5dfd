"""A headless browser, and what tests ask of a page in it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

__all__ = ["BROWSER", "DRIVER", "Page", "browser"]

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Page:
    """A tab, and what a test asks of it."""

    def __init__(self, driver: WebDriver) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        self.driver.get("about:blank")  # or another place on the same page would be no new page
        self.forget()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.cdp("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get(url)

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)  # type: ignore[attr-defined]

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def text(self, selector: str) -> str:
        found = self.js(
            "const e = document.querySelector(arguments[0]); return e ? e.textContent : ''", selector
        )
        return str(found).replace("\u00a0", " ")

    def until(self, true: Callable[[], Any], seconds: float = 10) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, f"{self.text('main')[:600]}\n{self.errors()}"
            time.sleep(0.03)
        return found

    def ready(self) -> None:
        self.until(lambda: self.js("return document.body.dataset.ready"), 20)

    def measures(self, name: str) -> list[float]:
        return list(
            self.js(
                "return performance.getEntriesByName(arguments[0]).map((e) => e.startTime + e.duration)", name
            )
        )

    def durations(self) -> list[float]:
        return list(self.js("return performance.getEntriesByName('atoll-update').map((e) => e.duration)"))

    def forget(self) -> None:
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # type: ignore[attr-defined]

    def errors(self) -> list[str]:
        entries = self.driver.get_log("browser")  # type: ignore[attr-defined]
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def asked(self) -> set[str]:
        """Addresses that were asked for since the last look."""
        found = set()
        for entry in self.driver.get_log("performance"):  # type: ignore[attr-defined]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.add(message["params"]["request"]["url"])
        return {url for url in found if not url.startswith(("about:", "data:", "chrome:"))}

    def empty(self, panels: Sequence[str]) -> list[str]:
        """Those of the panels that are not there, or whose pictures are blank."""
        return list(
            self.js(
                """
                const blank = (canvas) => {
                  const { width, height } = canvas;
                  const copy = Object.assign(document.createElement("canvas"), { width, height });
                  const sheet = copy.getContext("2d", { willReadFrequently: true });
                  sheet.drawImage(canvas, 0, 0);  // the browser warns where the page's own is read often
                  const data = sheet.getImageData(0, 0, width, height).data;
                  const seen = new Set();
                  for (let i = 0; i < data.length && seen.size < 3; i += 4) {
                    seen.add((data[i] << 24) | (data[i + 1] << 16) | (data[i + 2] << 8) | data[i + 3]);
                  }
                  return seen.size < 3;
                };
                return arguments[0].filter((id) => {
                  const section = document.getElementById(id);
                  const canvases = [...section.querySelectorAll("canvas")];
                  const words = section.textContent.trim().length;
                  const pictures = !["problems", "settings"].includes(id);
                  return section.hidden || words < 40 || canvases.some(blank) || (pictures && !canvases.length);
                });
                """,
                list(panels),
            )
        )


@contextmanager
def browser() -> Iterator[Page]:
    """A browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for switch in (
            "headless=new",
            "no-sandbox",
            "disable-dev-shm-usage",
            "no-first-run",
            "hide-scrollbars",
        ):
            options.add_argument(f"--{switch}")
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        driver.set_page_load_timeout(30)
        try:
            yield Page(driver)
        finally:
            driver.quit()
