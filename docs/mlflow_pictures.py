"""Take the pictures of MLflow's pages in docs/images.

Needs a store with a study in it (`make demo`), Chromium with its driver (Debian: chromium and
chromium-driver), and `pip install selenium`. It starts `gradrank ui`, looks at the newest study's
cells and at their comparison, and ends the server.

    python docs/mlflow_pictures.py
"""

import argparse
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

IMAGES = Path(__file__).parent / "images"
DRAWING_S = 8.0
"""What MLflow's pages take to fetch and draw everything."""


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1500,1150"):
        options.add_argument(f"--{argument}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def wait_until_up(server: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(server, timeout=2).close()
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def take(page: webdriver.Chrome, url: str, path: Path) -> None:
    page.get(url)
    page.refresh()  # the address differs in its fragment alone, which loads nothing
    time.sleep(DRAWING_S)
    for panel in page.find_elements(By.CSS_SELECTOR, "[data-component-id*='assistant'][data-component-id*='close']"):
        panel.click()
        time.sleep(DRAWING_S / 2)
    path.parent.mkdir(exist_ok=True)
    page.save_screenshot(str(path))
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=5017)
    options = parser.parse_args()
    command = [sys.executable, "-m", "launch", "ui", "--port", str(options.port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+/#/\S+", line)))
        wait_until_up(url.split("/#/")[0])
        page = browser()
        try:
            take(page, url, IMAGES / "mlflow-comparison.png")
            take(page, url.replace("&compareRunsMode=CHART", ""), IMAGES / "mlflow-cells.png")
        finally:
            page.quit()
    finally:
        server.terminate()
        server.wait(timeout=30)


if __name__ == "__main__":
    main()
