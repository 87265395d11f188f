"""`python docs/screenshots.py PASSED FAILED`: pictures of the reports of two finished runs.

Needs Chromium on the path. Leaves docs/pictures/report-passed-*.png and report-*.png, in light, in
dark and as wide as a phone. Fails where a page says anything on the console, asks for anything, or
has what axe calls a serious fault.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).resolve().parent / "pictures"
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1100, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1100, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 800}},
}


def take(browser: Any, run: Path, name: str) -> None:
    """All views of a run's page, made again from its report.json."""
    subprocess.run(["compress", "report", str(run)], check=True)
    address = (run / "report.html").resolve().as_uri()
    for view, options in VIEWS.items():
        page = browser.new_page(**options)
        said: list[str] = []
        page.on("console", lambda message, to=said: to.append(message.text))
        page.on("pageerror", lambda error, to=said: to.append(str(error)))
        page.on("request", lambda request, to=said: to.append(request.url))
        page.goto(address)
        # the whole page where it is wide; of a phone, what it shows first
        picture = FOLDER / f"{name}-{view}.png"
        page.screenshot(path=picture, full_page=view != "phone")
        Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(
            picture, optimize=True
        )
        page.close()
        assert said == [address], f"{run}: more than the page itself: {said}"
        check(browser, address, options)


def check(browser: Any, address: str, options: dict[str, Any]) -> None:
    """Axe is put into the page, which the page's own policy forbids."""
    page = browser.new_page(bypass_csp=True, **options)
    page.goto(address)
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    found = Axe().run(page).response["violations"]
    serious = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
    page.close()
    assert not serious, f"{address}: {serious}"


def main() -> None:
    """Both runs."""
    passed, failed = map(Path, sys.argv[1:])
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take(browser, passed, "report-passed")
        take(browser, failed, "report")


if __name__ == "__main__":
    main()
