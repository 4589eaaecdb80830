"""Takes the chapters' pictures of the player, in a chromium: python docs/screens.py (or `make screens`)."""

import io
import itertools
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from inference_opt.explain.player.page import page as html_page
from inference_opt.explain.scenarios import play

OUT = Path(__file__).resolve().parent.parent / "chapters" / "figures"
# {file: (scenario, event, which of these)}; each is taken in light and, as FILE_dark, in dark.
SHOTS = {
    "00_step": ("naive-decoding", "naive.token", 3),
    "01_step": ("kv-cache", "cache.token", 4),
    "02_step_pool": ("page-pool", "pool.release", 1),
    "02_step_attention": ("paged-attention", "paged.attend", 7),
    "03_step": ("diverging-insert", "radix.evict", 0),
    "03_step_chats": ("sglang-tree", "radix.insert", 7),
    "04_step_batch": ("continuous-batching", "engine.step", 6),
    "04_step_equal": ("equal-prompts", "schedule.admit", 1),
    "04_step": ("preemption", "schedule.preempt", 1),
    "05_step": ("latent-attention", "mla.absorb", 1),
    "06_step": ("rejection", "speculation.reject", 0),
    "06_step_engine": ("speculative-step", "speculation.replace", 0),
    "06_step_full": ("full-acceptance", "speculation.bonus", 0),
    "06_step_block": ("block-verification", "speculation.weigh", 0),
    "06_step_candidates": ("several-candidates", "speculation.accept", 0),
    "06_step_tree": ("draft-tree", "speculation.accept", 1),
    "06_step_nodes": ("tree-step", "speculation.accept", 2),
    "07_step": ("biased-rule", "law.path", 13),
    "07_step_exact": ("exact-law", "law.path", 10),
    "08_step": ("pieces-of-attention", "kernel.merge", 2),
}


def fewer_colours(image: Image.Image, most: int = 128) -> Image.Image:
    """The most frequent colours stay exactly as they are: every area is one. All others become the nearest of them."""
    colours, where, counts = np.unique(
        np.asarray(image).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    palette = colours[np.argsort(-counts, kind="stable")[:most]].astype(int)
    nearest = np.stack([np.abs(palette - colour).sum(1).argmin() for colour in colours]).astype(np.uint8)
    small = Image.fromarray(nearest[where].reshape(image.height, image.width), "P")
    small.putpalette(palette.astype(np.uint8).tobytes())
    return small


def shoot(browser: Browser, folder: Path, name: str, theme: str) -> int:
    """One picture; returns its bytes."""
    scenario, event, nth = SHOTS[name]
    trace = play(scenario)
    step = [i for i, each in enumerate(trace.events()) if each == event][nth]
    file = folder / f"{scenario}.html"
    file.write_text(html_page(trace), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1160, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
    page.goto(f"{file.as_uri()}#step-{step + 1}")
    page.locator(".scene svg").first.wait_for()
    if page.locator(".scene").evaluate_all("all => all.some((each) => each.scrollWidth > each.clientWidth)"):
        page.set_viewport_size({"width": 1280, "height": 900})  # a still cannot be moved
    image = Image.open(io.BytesIO(page.locator(".player").screenshot()))
    path = OUT / f"{name}{'_dark' if theme == 'dark' else ''}.png"
    fewer_colours(image.convert("RGB")).save(path, optimize=True)
    page.close()
    return path.stat().st_size


def main() -> None:
    """All of them."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, theme in itertools.product(SHOTS, ("light", "dark")):
            print(f"{name}, {theme}: {shoot(browser, Path(folder), name, theme) / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
