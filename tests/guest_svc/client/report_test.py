#!/usr/bin/env python3
"""The report as a reader meets it: opened from disk in headless Chromium.

report_test.py BIN_FOLDER [--screenshots=FOLDER] [--report=FILE.html]: BIN_FOLDER holds viommu and the
services. Drives Chromium over its debugging pipe: no package but Chromium itself. Exit 77 (skipped)
where there is none.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN = pathlib.Path(sys.argv[1])
OPTIONS = dict(a[2:].split("=", 1) for a in sys.argv[2:] if a.startswith("--") and "=" in a)
CHROMIUM = next((p for p in map(shutil.which, ["chromium", "chromium-browser", "google-chrome"]) if p),
                None)


class Browser:
    """One Chromium; commands are JSON messages ended by NUL on descriptors 3 and 4."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        to_child, self.out = os.pipe()
        self.inp, from_child = os.pipe()
        # The child finds the pipe on 3 and 4 whatever numbers it has here.
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" 3<&{to_child} 4>&{from_child}', "sh", CHROMIUM,
             "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}"],
            pass_fds=(to_child, from_child), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True)
        os.close(to_child)
        os.close(from_child)
        self.buffer = b""
        self.number = 0
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Network", "Log"]:
            self.call(f"{domain}.enable")

    def read(self):
        while b"\0" not in self.buffer:
            chunk = os.read(self.inp, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium went away")
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if getattr(self, "session", None):
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def js(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                           awaitPromise=True)
        if "exceptionDetails" in result:
            raise AssertionError(result["exceptionDetails"])
        return result["result"].get("value")

    def open(self, path, width, height, dark=False):
        self.events = []
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=f"file://{path}")
        for _ in range(200):
            if self.js("document.readyState === 'complete' && "
                       "document.querySelectorAll('#charts svg').length > 0"):
                break
            time.sleep(0.05)
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def screenshot(self, name):
        if "screenshots" not in OPTIONS:
            return
        import base64
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        folder = pathlib.Path(OPTIONS["screenshots"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(base64.b64decode(data))

    def complaints(self):
        """Console errors, exceptions, and requests that left the file."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(params["args"])
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"])
            elif method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:")):
                    found.append(url)
        return found

    def close(self):
        os.close(self.out)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.inp)
        for _ in range(20):
            try:
                self.folder.cleanup()
                return
            except OSError:  # a helper process is still writing its last file
                time.sleep(0.2)


# Marks that a chart must have, as a selector inside its figure, and how many at least.
MARKS = {
    "cost": ("g[aria-label=line] path", 2),
    "heat": ("g[aria-label=rect] rect", 100),
    "exposure": ("g[aria-label=dot] circle", 4),
    "entries": ("g[aria-label=line] path", 2),
    "parts": ("g[aria-label=bar] rect", 4),
    "tornado": ("g[aria-label=bar] rect", 4),
    "latency": ("g[aria-label=dot] circle", 4),
}


@unittest.skipUnless(CHROMIUM, "Chromium is not installed")
class Report(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = OPTIONS.get("report")
        if cls.path is None:
            cls.path = f"{cls.folder.name}/report.html"
            # Sizes between which lazy-single and strict swap places.
            result = subprocess.run(
                [BIN / "viommu", "compare", "--workload=nic-rx-classic", "--ops=2000",
                 "--policies=strict,lazy,lazy-single,lazy-psi", "--strategies=walk,snapshot",
                 "--live_pages=256,4096,32768", f"--report={cls.path}", "--sensitivity",
                 f"--json={cls.folder.name}/report.json"],
                capture_output=True, text=True, timeout=240)
            assert result.returncode == 0, result.stderr
        cls.browser = Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.folder.cleanup()

    def check_page(self):
        b = self.browser
        self.assertEqual(b.complaints(), [])
        for chart, (selector, least) in MARKS.items():
            marks = b.js(f"document.querySelectorAll('#{chart} {selector}').length")
            self.assertGreaterEqual(marks, least, chart)
            # A mark that no scale could place has NaN in its geometry.
            self.assertNotIn("NaN", b.js(f"document.querySelector('#{chart} svg').outerHTML"), chart)
        wide = b.js("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        self.assertLessEqual(wide, 0, "the page scrolls sideways")
        # Nothing of a chart sticks out of its card.
        self.assertEqual(b.js("""[...document.querySelectorAll('figure')].filter(f => {
            const card = f.getBoundingClientRect();
            return [...f.querySelectorAll('svg text')].some(t => {
              const r = t.getBoundingClientRect();
              return r.width > 0 && (r.left < card.left - 1 || r.right > card.right + 1);
            });
          }).map(f => f.id)"""), [])

    # Pairs of texts of one chart that overlap or touch.
    OVERLAPS = """[...document.querySelectorAll('figure')].flatMap(f => {
        const texts = [...f.querySelectorAll('svg text')].filter(t => t.textContent.trim())
          .map(t => ({text: t.textContent, r: t.getBoundingClientRect()}));
        const found = [];
        for (let i = 0; i < texts.length; ++i) for (let j = i + 1; j < texts.length; ++j) {
          const [a, b] = [texts[i].r, texts[j].r];
          const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
          const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
          if (x > -2 && y > 4) found.push(`${f.id}: "${texts[i].text}" on "${texts[j].text}"`);
        }
        return found;
      })"""

    def test_desktop(self):
        self.browser.open(self.path, 1280, 900)
        self.check_page()
        self.assertEqual(self.browser.js(self.OVERLAPS), [])
        self.browser.screenshot("desktop")

    def test_phone(self):
        self.browser.open(self.path, 390, 844)
        self.check_page()
        self.assertEqual(self.browser.js(self.OVERLAPS), [])
        self.browser.screenshot("phone")

    def test_dark(self):
        self.browser.open(self.path, 1280, 900, dark=True)
        self.check_page()
        luminance = """(() => {
          const c = getComputedStyle(document.querySelector('%s'))['%s'].match(/[0-9.]+/g).map(Number);
          return (0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]) / 255; })()"""
        self.assertLess(self.browser.js(luminance % ("body", "backgroundColor")), 0.15)
        self.assertLess(self.browser.js(luminance % ("figure", "backgroundColor")), 0.15)
        self.assertGreater(self.browser.js(luminance % ("body", "color")), 0.7)
        self.assertGreater(self.browser.js(luminance % ("#cost svg text", "fill")), 0.5)
        self.browser.screenshot("dark")

    def test_choices_redraw(self):
        b = self.browser
        b.open(self.path, 1280, 900)
        before = b.js("document.querySelector('#entries svg').outerHTML")
        names = b.js("[...document.querySelectorAll('#choices input')].length")
        self.assertEqual(names, 2)
        for index in range(names):
            b.js(f"document.querySelectorAll('#choices input')[{index}].click()")
            if "report" not in OPTIONS and index == 1:
                continue  # snapshot reads nothing one by one at some sizes
            self.check_page()
        self.assertNotEqual(b.js("document.querySelector('#entries svg').outerHTML"), before)
        for figure in ["parts", "tornado"]:
            count = b.js(f"document.querySelectorAll('#{figure} .tools input').length")
            self.assertGreaterEqual(count, 4)
            for index in range(count):
                b.js(f"document.querySelectorAll('#{figure} .tools input')[{index}].click()")
        self.assertEqual(b.complaints(), [])

    def test_crossover_is_the_answers(self):
        """What the page interpolates for its mark is what the program says in its sentence."""
        b = self.browser
        b.open(self.path, 1280, 900)
        marked = b.js("document.querySelector('#cost .crossings').textContent")
        said = b.js("document.querySelector('.answer').textContent")
        swaps = re.findall(r"([a-z-]+) and strict swap places[^.]*?about ([0-9,]+) by linear", said)
        self.assertTrue(swaps, said)
        for policy, live in swaps[:1]:  # of the strategy that is shown first
            self.assertIn(f"{policy} and strict cost the same at about {live} live pages", marked)

    def test_tornado_is_the_sensitivity(self):
        """The page prices counts itself; the program's own table must say the same."""
        if "report" in OPTIONS:
            self.skipTest("the program's figures are known for its own run only")
        b = self.browser
        b.open(self.path, 1280, 900)
        document = json.loads(pathlib.Path(self.folder.name, "report.json").read_text())
        pair = next(p for p in document["sensitivity"]
                    if p["first"] == "lazy" and p["strategy"] == "walk")
        self.assertGreater(len(pair["swings"]), 3)
        b.js("""document.querySelectorAll('#tornado .tools input').forEach(i => {
          if (i.name === 'tornado-policy' && i.parentNode.textContent === 'lazy') i.click(); })""")
        for answer, want in [("× strict", pair["base"]["ratio"]),
                             ("flip with strict", pair["base"]["flip_pages"])]:
            b.js(f"""[...document.querySelectorAll('#tornado .tools label')]
              .find(l => l.textContent === '{answer}').querySelector('input').click()""")
            said = float(b.js("document.querySelector('#tornado svg').dataset.base"))
            self.assertAlmostEqual(said / want, 1, 6)
        names = b.js("[...document.querySelectorAll('#tornado svg g[aria-label=\"y-axis tick label\"] text')]"
                     ".map(t => t.textContent)")
        self.assertTrue(set(names) <= {s["constant"][:-3].replace("_", " ") for s in pair["swings"]})
        self.assertEqual(b.complaints(), [])

    def test_table_sorts_and_downloads(self):
        b = self.browser
        b.open(self.path, 1280, 900)
        column = b.js("""[...document.querySelectorAll('#rows th')]
          .findIndex(th => th.textContent === 'modelled / unmap')""")
        values = f"[...document.querySelectorAll('#rows tbody tr')].map(tr => +tr.children[{column}].dataset.v)"
        b.js(f"document.querySelectorAll('#rows th button')[{column}].click()")
        up = b.js(values)
        self.assertEqual(up, sorted(up))
        self.assertGreater(len(set(up)), 3)
        b.js(f"document.querySelectorAll('#rows th button')[{column}].click()")
        self.assertEqual(b.js(values), sorted(up, reverse=True))
        document = json.loads(b.js("fetch(document.getElementById('json').href).then(r => r.text())"))
        self.assertEqual(document["schema"], "viommu.compare.v1")
        lines = b.js("fetch(document.getElementById('csv').href).then(r => r.text())").splitlines()
        self.assertEqual(len(lines), len(document["rows"]) + 1)
        head = lines[0].split(",")
        first = dict(zip(head, lines[1].split(",")))
        self.assertEqual(int(first["exits"]), document["rows"][0]["exits"])
        self.assertEqual(int(first["descriptors.wait"]), document["rows"][0]["descriptors"]["wait"])


if __name__ == "__main__":
    if CHROMIUM is None:
        print("skipped: Chromium is not installed")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *[a for a in sys.argv[2:] if not a.startswith("--")]], verbosity=2)
