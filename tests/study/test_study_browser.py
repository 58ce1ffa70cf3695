"""The page in a real browser: two readers at once, one with a keyboard only, a reload, and a server that is killed.

The commands are those that a hospital would type. Needs Debian's chromium; with VMDDPM_REQUIRE_BROWSER=1 its absence is
a failure.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from study_helpers import Server, make_study, rows_of

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip
DESKTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
KEYS = {"real": "r", "synthetic": "s", "low": "l", "medium": "m", "high": "h"}


@pytest.fixture(autouse=True, scope="module")
def _browser_is_there():
    if CHROMIUM is None:
        assert os.environ.get("VMDDPM_REQUIRE_BROWSER") != "1", "chromium is not installed"
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")


@contextmanager
def opened(url, **context):
    """A page in its own browser, and the list of its requests and console messages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(60_000)
        requests, complaints = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        yield page, requests, complaints
        browser.close()


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, n=10, size=64)


@pytest.fixture
def server(study):
    with Server(study.path) as server:
        yield server


def image_number(page, number, total=20):
    page.get_by_role("heading", name=f"Image {number} of {total}", exact=True).wait_for()
    page.locator("#waiting").wait_for(state="hidden")


def choices(reader):
    """(answer, confidence) for each of 20 images."""
    draw = np.random.default_rng(len(reader))
    return [(str(draw.choice(["real", "synthetic"])), str(draw.choice(["low", "medium", "high"]))) for _ in range(20)]


def read_by_keyboard(page, reader, done):
    """Read without a mouse, from the sign-in on; changes the answer for image 5, and reloads at image 12."""
    press = page.keyboard.press
    page.locator("#code:focus").wait_for()
    page.keyboard.type(reader)
    press("Enter")
    page.locator("#start:focus").wait_for()
    press("Enter")
    for number, (answer, confidence) in enumerate(choices(reader), 1):
        image_number(page, number)
        if number == 6:
            press("Backspace")
            image_number(page, 5)
            assert page.locator("input:checked").count() == 2
            for key in ("s", "l", "Enter"):
                press(key)
            image_number(page, 6)
            done.append((4, 1, "synthetic", "low"))
        if number == 12:
            reload(page)
            image_number(page, 12)
            assert page.locator("input:checked").count() == 0
        press("Enter")
        page.get_by_role("status").filter(has_text="Choose real or synthetic first").wait_for()
        for key in (KEYS[answer], KEYS[confidence], "Enter"):
            press(key)
        acknowledged(page, number)
        done.append((number - 1, 0, answer, confidence))


def read_by_touch(page, reader, done):
    page.get_by_label("Reader code").fill(reader)
    page.get_by_role("button", name="Sign in").tap()
    page.get_by_role("button", name="Start").tap()
    for number, (answer, confidence) in enumerate(choices(reader), 1):
        image_number(page, number)
        page.get_by_role("radio", name=answer).tap()
        page.get_by_role("radio", name=confidence).tap()
        page.get_by_role("button", name="Confirm").tap()
        acknowledged(page, number)
        done.append((number - 1, 0, answer, confidence))


def acknowledged(page, number):
    if number == 20:
        page.get_by_role("heading", name="Thank you").wait_for()
    else:
        image_number(page, number + 1)


def reload(page):
    """Reload until it works, because the server may be down."""
    from playwright.sync_api import Error

    while True:
        try:
            page.reload()
            return
        except Error:
            time.sleep(0.2)


def test_two_readers_at_once_a_reload_and_a_killed_server(study, server):
    done, failures = {"anna": [], "benjamin": []}, []

    def read(way, reader, device):
        try:
            with opened(server.url, **device) as (page, requests, complaints):
                way(page, reader, done[reader])
                assert all(request.startswith((server.url, "data:")) for request in requests)
                assert complaints == []
        except BaseException as error:
            failures.append(error)

    readers = [
        threading.Thread(target=read, args=(read_by_keyboard, "anna", DESKTOP)),
        threading.Thread(target=read, args=(read_by_touch, "benjamin", PHONE)),
    ]
    for reader in readers:
        reader.start()
    for answered in (4, 10):
        while min(map(len, done.values())) < answered:
            assert failures == []
            time.sleep(0.01)
        server.kill()
        time.sleep(1)
        server.start()
    for reader in readers:
        reader.join(180)
    assert failures == []
    for name, answers in done.items():
        rows = rows_of(study, name)
        assert [(row["position"], row["revision"], row["answer"], row["confidence"]) for row in rows] == answers
        assert len(rows) == (21 if name == "anna" else 20)
        assert all(row["seconds"] > 0 for row in rows)
        assert len({row["page"] for row in rows}) == 1

    command = [sys.executable, "-m", "vmddpm.cli", "study", "report", study.path]
    report = subprocess.run(command, capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    assert "| anna | 20 of 20 | 1 |" in report.stdout


def pixels(page):
    """The canvas's pixels, uint8 (H, W)."""
    size, values = page.evaluate(
        "() => { const c = document.getElementById('image'); const d = c.getContext('2d').getImageData(0, 0, c.width,"
        " c.height).data; return [c.width, Array.from(d.filter((_, i) => i % 4 === 0))]; }"
    )
    return np.array(values, np.uint8).reshape(size, size)


def begin(page, reader="anna"):
    page.get_by_label("Reader code").fill(reader)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Start").click()
    image_number(page, 1)


def test_a_page_survives_a_server_killed_after_any_request(study, server):
    """The page is one document, and it repeats every request that fails after it has loaded."""
    with opened(server.url, **DESKTOP) as (page, requests, complaints):
        page.locator("#sign-in").wait_for()
        assert set(requests) <= {server.url, f"{server.url}state", "data:,"}
        page.route("**/state", lambda route: (server.kill(), route.continue_()), times=1)
        page.reload()
        page.get_by_role("status").filter(has_text="No connection").wait_for()
        server.start()
        begin(page)
        assert complaints == []


def test_the_image_is_shown_as_it_is_and_through_a_window(study, server):
    with Image.open(study.image(study.order("anna")[0])) as image:
        stored = np.asarray(image)
    with opened(server.url, **DESKTOP) as (page, _, complaints):
        begin(page)
        assert np.array_equal(pixels(page), stored)
        for key in ("c", "c", "b"):
            page.keyboard.press(key)
        # Contrast 10 is a window of 256 / 2^(1/4) levels, brightness 5 moves its middle from 127.5 to 121.125.
        expected = np.clip(127.5 + (stored - 121.125) * 2**0.25, 0, 255)
        assert np.abs(pixels(page) - expected).max() <= 0.5 + 1e-9
        for key in ("+", "+", "ArrowLeft"):
            page.keyboard.press(key)
        assert page.locator("#image").evaluate("(e) => e.style.transform") == "translate(40px, 0px) scale(1.5625)"
        page.keyboard.press("0")
        assert page.locator("#image").evaluate("(e) => e.style.transform") == "translate(0px, 0px) scale(1)"
        assert np.array_equal(pixels(page), stored)
        page.mouse.move(300, 300)
        page.mouse.wheel(0, -300)
        page.locator("#image[style*='scale(2)']").wait_for()
        assert complaints == []


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everything_is_on_the_screen_and_has_a_name(study, server, device):
    with opened(server.url, **device) as (page, _, _):
        for step in ("sign-in", "instructions", "reading"):
            page.locator(f"#{step}").wait_for()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            unnamed = page.evaluate(
                "() => [...document.querySelectorAll('button, input, canvas, progress')].filter((e) =>"
                " e.checkVisibility() && !(e.labels?.length || e.ariaLabel || e.textContent.trim()"
                " || e.getAttribute('aria-labelledby'))).map((e) => e.outerHTML)"
            )
            assert unnamed == []
            if step == "sign-in":
                page.get_by_label("Reader code").fill("anna")
                page.get_by_role("button", name="Sign in").click()
            elif step == "instructions":
                page.get_by_role("button", name="Start").click()
                image_number(page, 1)
        height = device["viewport"]["height"]
        for name in ("Confirm", "Back"):
            box = page.get_by_role("button", name=name, exact=False).first.bounding_box()
            assert box["y"] + box["height"] <= height
        shown = page.locator("#image").bounding_box()
        assert min(shown["width"], shown["height"]) >= 0.7 * min(device["viewport"].values())


def test_two_windows_of_one_reader_store_one_answer(study, server):
    with opened(server.url, **DESKTOP) as (page, _, _):
        begin(page)
        other = page.context.new_page()
        other.goto(server.url)
        other.get_by_role("button", name="Start").click()
        image_number(other, 1)
        for window, answer in ((page, "r"), (other, "s")):
            for key in (answer, "h", "Enter"):
                window.keyboard.press(key)
            image_number(window, 2)
        other.get_by_role("status").filter(has_text="answered in another window").wait_for()
    assert [(row["position"], row["answer"]) for row in rows_of(study, "anna")] == [(0, "real")]


def test_signing_out_leaves_the_page_to_the_next_reader(study, server):
    with opened(server.url, **DESKTOP) as (page, _, _):
        begin(page)
        for key in ("r", "h", "Enter"):
            page.keyboard.press(key)
        image_number(page, 2)
        page.get_by_role("button", name="Sign out").click()
        begin(page, "ben")
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Reader code").fill("anna")
        page.keyboard.press("Enter")
        image_number(page, 2)
