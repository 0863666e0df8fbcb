#!/usr/bin/env python3
"""The web console at /ui in headless Chromium: what it shows of a fleet under load, its key, its buttons; that nothing comes from
elsewhere, and that it can be read in light and dark and used with 500 workers.

usage: console_test.py <sluice binary> [--screenshots FOLDER]"""
import base64
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
try:
    import websocket
except ImportError:
    websocket = None
if not CHROMIUM or not websocket:
    print("skipped: needs chromium-headless-shell (Debian) and websocket-client (PyPI), which ./test installs")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

BINARY = sys.argv.pop(1)
SCREENSHOTS = pathlib.Path(sys.argv.pop(1)) if sys.argv[1:2] == ["--screenshots"] and sys.argv.pop(1) else None
WAIT = 60
KEY = "the-control-key"
PROMPT = "a prompt that nobody may read"


class Browser:
    """One page of Chromium, by its remote debugging protocol."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
             "--remote-allow-origins=*", f"--user-data-dir={self.profile.name}", "--window-size=1360,760", "about:blank"],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
        port = None
        for line in self.process.stderr:
            if found := re.search(r"DevTools listening on ws://[^:]+:(\d+)/", line):
                port = int(found[1])
                break
        assert port, "Chromium did not start"
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        pages = call(f"http://127.0.0.1:{port}/json/list")[2]
        page = next(page for page in pages if page["type"] == "page")
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=WAIT)
        self.next_id = 0
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(domain + ".enable")

    def do(self, method, **parameters):
        self.next_id += 1
        self.socket.send(json.dumps({"id": self.next_id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if "method" in message:
                self.events.append(message)
            elif message["id"] == self.next_id:
                assert "error" not in message, message
                return message["result"]

    def js(self, expression):
        result = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression):
        """The first value of the expression that is true."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if value := self.js(expression):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}; the page: {self.js('document.body.innerText')[:2000]}")

    def type(self, field, text):
        self.js(f"(() => {{ const e = document.getElementById('{field}'); e.value = {json.dumps(text)}; "
                "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })()")

    def click(self, selector):
        """With the mouse, where the thing is: what covers it takes the click."""
        box = self.until(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null; "
                         "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect(); "
                         "return b.width ? {x: b.x + b.width / 2, y: b.y + b.height / 2} : null; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=box["x"], y=box["y"], button="left", clickCount=1)

    def screenshot(self, name):
        if SCREENSHOTS:
            data = self.do("Page.captureScreenshot", format="png")["data"]
            (SCREENSHOTS / name).write_bytes(base64.b64decode(data))

    def stop(self):
        self.socket.close()
        os.killpg(self.process.pid, signal.SIGKILL)  # what it started outlives it else
        self.process.wait(WAIT)
        self.profile.cleanup()


class ConsoleTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.stop)

    def setUp(self):
        self.workers = [self.started(Sluice(BINARY, "bench", "worker", "--port", 0)) for _ in range(4)]
        self.gateway = self.started(Sluice(
            BINARY, "gateway", "--host", "127.0.0.1", "--port", 0, "--prometheus-host", "127.0.0.1", "--prometheus-port", 0,
            "--control-plane-api-keys", f"1:me:admin:{KEY}", "--drain-settle-secs", "1", "--shutdown-grace-period-secs", "0",
            "--worker-urls", *(worker.url for worker in self.workers)))
        self.eventually(lambda: [w["status"] for w in self.state()["workers"]] == ["ready"] * 4)
        self.browser.events.clear()

    def started(self, thing):
        self.addCleanup(thing.stop)
        return thing

    def eventually(self, condition):
        return wait_until("the condition", condition, WAIT)

    def control(self, method, path, body=None):
        return call(self.gateway.url + path, body, method, {"Authorization": "Bearer " + KEY})

    def state(self):
        return self.control("GET", "/debug/workers")[2]

    def load(self, requests=60):
        for i in range(requests):
            body = {"model": "m", "stream": i % 3 > 0, "max_tokens": 6,
                    "messages": [{"role": "system", "content": f"{PROMPT} {i % 3} " * 40}, {"role": "user", "content": f"question {i}"}]}
            status, _, _ = call(self.gateway.url + "/v1/chat/completions", body, headers={"x-request-id": f"request-{i}"})
            self.assertEqual(status, 200)

    def busy_for_a_picture(self):
        """Some forty requests at a time, until the test is over."""
        self.control("POST", "/workers", {"url": "http://127.0.0.1:9"})
        over = threading.Event()

        def client(number):
            while not over.is_set():
                body = {"model": "m", "stream": True, "max_tokens": 40 + number,
                        "stream_options": {"include_usage": True}, "messages": [
                    {"role": "system", "content": f"{PROMPT} {number % 7} " * 200},
                    {"role": "user", "content": f"{number} {time.monotonic()} " * 20}]}
                call(self.gateway.url + "/v1/chat/completions", body)

        threads = [threading.Thread(target=client, args=(i,)) for i in range(40)]
        for thread in threads:
            thread.start()
        self.addCleanup(lambda: [over.set()] + [thread.join() for thread in threads])
        time.sleep(30)

    def open(self, key=KEY, keep=False):
        browser = self.browser
        browser.do("Page.navigate", url="about:blank")
        browser.until("location.href === 'about:blank'")
        browser.events.clear()  # of another page
        browser.do("Page.navigate", url=self.gateway.url + "/ui")
        browser.until("document.getElementById('ask-key')?.open")
        browser.type("key-text", key)
        if keep:
            browser.click("#key-keep")
        browser.click("#ask-key button.main")

    def rows(self, table):
        return self.browser.js(f"[...document.querySelectorAll('#{table} tbody tr')].map(r => [...r.cells].map(c => c.innerText))")

    def expect_nothing_odd(self):
        """No error, no refused style or script, nothing from elsewhere, no text of a prompt."""
        own = self.gateway.url + "/"
        for event in self.browser.events:
            self.assertNotEqual(event["method"], "Runtime.exceptionThrown", event)
            if event["method"] == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                self.assertTrue(url.startswith((own, "data:image/svg")), url)
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                # A key that was refused is said by the browser too.
                self.assertIn("401", event["params"]["entry"]["text"], event)
        self.assertNotIn(PROMPT, self.browser.js("document.documentElement.outerHTML"))

    def test_a_key_is_asked_for_and_stays_in_memory(self):
        browser = self.browser
        self.open(key="wrong")
        browser.until("document.getElementById('ask-key').open && document.getElementById('key-problem').innerText.includes('Invalid')")
        self.assertEqual(self.rows("workers"), [])
        browser.type("key-text", KEY)
        browser.click("#ask-key button.main")
        browser.until("document.querySelectorAll('#workers tbody tr').length === 4")
        self.assertEqual(browser.js("sessionStorage.length + localStorage.length + document.cookie.length"), 0)
        self.assertNotIn(KEY, browser.js("document.documentElement.outerHTML + location.href"))
        browser.do("Page.reload")
        browser.until("document.getElementById('ask-key')?.open")
        browser.type("key-text", KEY)
        browser.click("#key-keep")
        browser.click("#ask-key button.main")
        browser.until("document.querySelectorAll('#workers tbody tr').length === 4")
        browser.do("Page.reload")
        browser.until("document.querySelectorAll('#workers tbody tr').length === 4")
        self.assertFalse(browser.js("document.getElementById('ask-key').open"))
        browser.js("sessionStorage.clear()")
        self.expect_nothing_odd()

    def test_it_shows_workers_requests_and_the_index(self):
        browser = self.browser
        self.load()
        self.open()
        browser.until("document.querySelectorAll('#workers tbody tr').length === 4")
        rows = self.rows("workers")
        self.assertEqual({row[0] for row in rows}, {worker.url for worker in self.workers})
        self.assertEqual({row[2] for row in rows}, {"ready"})
        self.assertEqual(sum(int(row[8].split(" of ")[1]) for row in rows), 60)
        self.assertIn("4 of 4", browser.js("document.getElementById('cards').innerText.replace(/\\s+/g, ' ')"))

        # A worker that passes its health checks and is silent is shown as what it is.
        shown = browser.js("showWorkers(all_workers.map((w) => ({...w, suspect: true}))); document.getElementById('workers').innerText")
        self.assertEqual(shown.count("suspect"), 4)

        browser.click("#tab-requests")
        browser.until("document.querySelectorAll('#requests tbody tr.pick').length === 60")
        browser.click("#requests tbody tr.pick")
        why = browser.until("(t => t.includes('Attempt 1') ? t : '')(document.getElementById('why').innerText)")
        newest = self.control("GET", "/debug/requests?count=1")[2]["recent"][0]
        for part in (newest["id"], newest["worker"], "cache_aware", newest["prompt"]["hash"], "200 ok"):
            self.assertIn(part, why)

        browser.click("#tab-index")
        browser.until("document.querySelectorAll('#prefixes tbody tr').length > 2")
        index = self.control("GET", "/debug/index?top=50")[2]
        self.assertEqual({row[0] for row in self.rows("prefixes")}, {prefix["hash"] for prefix in index["prefixes"]})
        self.assertEqual(len(self.rows("held")), len(index["workers"]))
        self.expect_nothing_odd()

    @unittest.skipUnless(SCREENSHOTS, "only for the pictures of docs/images")
    def test_pictures(self):
        browser = self.browser
        self.open()
        self.busy_for_a_picture()
        browser.screenshot("console-workers.png")
        browser.click("#tab-requests")
        browser.click("#requests tbody tr.pick:nth-last-child(5)")
        browser.until("document.getElementById('why').innerText.includes('Attempt 1')")
        browser.js("scrollTo(0, 0)")
        self.dark(True)
        browser.screenshot("console-requests.png")
        self.dark(False)

    def test_a_worker_is_drained_and_added_again(self):
        browser = self.browser
        self.open()
        browser.until("document.querySelectorAll('#workers tbody tr').length === 4")
        gone = self.rows("workers")[0][0]
        browser.click("#workers tbody tr:first-child button")
        browser.until("document.getElementById('ask-drain').open")
        self.assertEqual(browser.js("document.getElementById('drain-url').innerText"), gone)
        browser.click("#ask-drain button.main")
        browser.until("document.querySelectorAll('#workers tbody tr').length === 3")
        self.assertNotIn(gone, [worker["url"] for worker in self.state()["workers"]])

        browser.click("#add")
        browser.until("document.getElementById('ask-add').open")
        browser.type("add-url", "not an address")
        browser.click("#ask-add button.main")
        browser.until("document.getElementById('ask-add').open && document.getElementById('add-problem').innerText !== ''")
        browser.type("add-url", gone)
        browser.click("#ask-add button.main")
        browser.until("[...document.querySelectorAll('#workers tbody tr')].filter(r => r.innerText.includes('ready')).length === 4")
        self.assertIn(gone, [worker["url"] for worker in self.state()["workers"]])
        browser.events = [event for event in browser.events if "400" not in str(event)]  # the address that is none
        self.expect_nothing_odd()

    def test_five_hundred_workers_can_be_sorted_and_found(self):
        browser = self.browser
        for port in range(1, 497):
            status, _, text = self.control("POST", "/workers", {"url": f"http://127.0.0.1:{port}"})
            self.assertEqual(status, 202, text)
        self.open()
        browser.until("document.querySelectorAll('#workers tbody tr').length === 500")
        browser.click("#workers thead th:nth-child(3) button")
        self.assertEqual(browser.js("document.querySelector('#workers thead th:nth-child(3)').getAttribute('aria-sort')"), "ascending")
        browser.type("filter", "ready")
        browser.until("document.querySelectorAll('#workers tbody tr').length === 4")
        browser.type("filter", "")
        browser.type("find", "127.0.0.1:123")
        browser.until("document.querySelectorAll('#workers tbody tr').length === 1")
        browser.type("find", "")
        self.expect_nothing_odd()

    def dark(self, on):
        self.browser.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if on else "light"}])

    def test_it_can_be_read_and_every_control_has_a_name(self):
        browser = self.browser
        self.load(10)
        self.open()
        browser.until("document.querySelectorAll('#workers tbody tr').length === 4")
        grounds = set()
        for dark in (False, True):
            self.dark(dark)
            colors = browser.js("""(() => {
              const style = getComputedStyle(document.documentElement), probe = document.createElement('i');
              document.body.append(probe);
              const all = {};
              for (const name of ['ground', 'card', 'text', 'quiet', 'accent', 'good', 'warn', 'bad']) {
                probe.style.color = style.getPropertyValue('--' + name);
                all[name] = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(Number);
              }
              probe.remove();
              return all;
            })()""")
            grounds.add(tuple(colors["ground"]))
            for name in ("text", "quiet", "accent", "good", "warn", "bad"):
                self.assertGreaterEqual(contrast(colors[name], colors["card"]), 4.5, f"{name}, dark: {dark}")
        self.dark(False)
        self.assertEqual(len(grounds), 2)
        for tab in ("workers", "requests", "index"):
            browser.click("#tab-" + tab)
            browser.until(f"!document.getElementById('view-{tab}').hidden")
            for node in browser.do("Accessibility.getFullAXTree")["nodes"]:
                role = node.get("role", {}).get("value")
                if role in ("button", "textbox", "searchbox", "combobox", "tab", "region", "dialog", "checkbox") and not node["ignored"]:
                    self.assertTrue(node["name"]["value"], node)
        # With the keyboard: arrows move between the views.
        browser.js("document.getElementById('tab-index').focus()")
        browser.do("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
        browser.until("document.activeElement.id === 'tab-workers' && !document.getElementById('view-workers').hidden")
        self.expect_nothing_odd()

    def test_the_page_has_nothing_from_elsewhere_and_says_so(self):
        status, headers, page = call(self.gateway.url + "/ui")
        self.assertEqual(status, 200)
        self.assertEqual(headers["Content-Type"], "text/html; charset=utf-8")
        policy = headers["Content-Security-Policy"]
        self.assertTrue(policy.startswith("default-src 'none';"), policy)
        self.assertNotRegex(policy, r"https?:|\*|unsafe")
        nonce = re.search(r"script-src 'nonce-([0-9a-f]{32})'", policy)[1]
        self.assertEqual(page.count(f'nonce="{nonce}"'), 2)
        self.assertNotIn(nonce, call(self.gateway.url + "/ui")[2])
        self.assertEqual(re.findall(r"""(?:src|href)=["'](?!data:)""", page), [])


def contrast(one, other):
    def luminance(color):
        parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


if __name__ == "__main__":
    unittest.main()
