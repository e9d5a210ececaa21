"""Draw docs/report.png and docs/explanation.png from the demo: python -m finetune.demo, then python -m docs.pictures.

Needs Chromium and a font with Chinese: apt-get install chromium fonts-wqy-microhei
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
SLIDE = "slide_012"


def save(png: bytes, name: str) -> None:
    """Save with a palette of 160 colours, a third of the size; in an octree thin lines keep their hue."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(160, Image.Quantize.FASTOCTREE).save(ROOT / "docs" / name, optimize=True)


def main() -> None:
    subprocess.run([sys.executable, "inference.py", "--checkpoint", DEMO / "run" / "best_model.pth",
                    "--embeddings_file", DEMO / "embeddings" / f"{SLIDE}.h5", "--explain", DEMO / "explained"],
                   cwd=ROOT, check=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1180}, locale="en-GB")
        page.goto((DEMO / "run" / "report.html").as_uri())
        save(page.screenshot(), "report.png")
        page = browser.new_page(viewport={"width": 900, "height": 1400}, locale="en-GB")
        page.goto((DEMO / "explained" / "explanation.html").as_uri())
        if not page.locator("button.phrase.lit").count():  # the first map is shown at once
            sys.exit(f"error: {SLIDE}: no phrase has an effect; draw another slide")
        top, tests = page.locator("#plain").bounding_box(), page.locator("#tests").bounding_box()
        box = {"x": 0, "y": top["y"] - 10, "width": 900, "height": tests["y"] + tests["height"] - top["y"] + 20}
        save(page.screenshot(full_page=True, clip=box), "explanation.png")  # from the caption to the table of tests
        browser.close()


if __name__ == "__main__":
    main()
