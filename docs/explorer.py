"""Make docs/img/explorer.png: `python docs/explorer.py` (needs Chromium)."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from minigrpo.paper import WORKED_EXAMPLE, WORKED_REWARDS
from minigrpo.tree import ProcessTree

PICTURE = Path(__file__).parent / "img" / "explorer.png"
SIZE = "1280,890"  # of the window, in which the page is somewhat lower
FLAGS = "--headless=new --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --virtual-time-budget=3000"


def main() -> None:
    """Show the paper's worked example in a headless browser and keep what it draws."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("docs/explorer.py needs Chromium: none of chromium, chromium-browser, google-chrome was found")
    tree = ProcessTree([completion.split() for completion in WORKED_EXAMPLE], WORKED_REWARDS)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explorer.html"
        page.write_text(tree.to_html(caption="This is the worked example of the paper."), encoding="utf-8")
        options = [*FLAGS.split(), f"--user-data-dir={folder}/profile", f"--window-size={SIZE}"]
        command = [browser, *options, f"--screenshot={PICTURE.resolve()}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    print(PICTURE.name)


if __name__ == "__main__":
    main()
