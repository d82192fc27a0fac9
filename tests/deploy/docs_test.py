"""The documents of deploy: their commands run as written, their recipes' output is read, the files that
they name exist.

docs_test.py BINARIES ROOT
"""
import glob
import gzip
import json
import os
import re
import subprocess
import sys
import unittest

import lab

BINARIES, ROOT = sys.argv[1:3]
TRACE = os.path.join(ROOT, "tests/data/linux/6.1_cmon_strict1_r4k/trace.txt.gz")
RECIPES = "deploy/docs/record-a-trace.md"
EVENT = re.compile(r"^\s*(\S+)-(\d+)\s+\[(\d+)\]\s+\S+\s+(\d+)\.(\d+): (map|unmap): (IOMMU: .*)$")


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def blocks(path, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", read(path), re.M | re.S)


def events(limit):
    """The first `limit` map and unmap events of the shipped trace, as they were recorded."""
    with gzip.open(TRACE, "rt") as f:
        found = (EVENT.match(line) for line in f)
        out = []
        for match in found:
            if match:
                out.append(match.groups())
                if len(out) == limit:
                    break
        return out


def numbers(text):
    return {k: int(v, 0) for k, v in re.findall(r"(iova|paddr|size|unmapped_size)=(\w+)", text)}


class Commands(unittest.TestCase):
    def test_try_it_blocks_run_as_written(self):
        commands = "".join(blocks(RECIPES, "sh run")).splitlines()
        self.assertGreaterEqual(len(commands), 3)
        with lab.Lab(BINARIES) as here:
            os.symlink(os.path.join(ROOT, "tests"), here.path("tests"))
            for command in commands:
                done = subprocess.run(command, shell=True, cwd=here.folder, text=True,
                                      env={**os.environ, "PATH": f"{BINARIES}:{os.environ['PATH']}"},
                                      capture_output=True, check=False)
                self.assertEqual(done.returncode, 0, (command, done.stderr))
            for made in ("descriptors.jsonl", "report.html", "report.json"):
                self.assertGreater(os.path.getsize(here.path(made)), 1000, made)


class Recipes(unittest.TestCase):
    """What each tool would have written of the same events is read as the same load."""

    @classmethod
    def setUpClass(cls):
        cls.lab = lab.Lab(BINARIES)
        cls.addClassCleanup(cls.lab.__exit__)
        cls.events = events(4000)
        cls.expected = cls.replay("ftrace", [
            f"{task}-{pid} [{cpu}] ..... {s}.{us}: {event}: {text}"
            for task, pid, cpu, s, us, event, text in cls.events])
        assert cls.expected["maps"] > 1500 and cls.expected["unmaps"] > 1500, cls.expected

    @classmethod
    def replay(cls, name, lines):
        path = cls.lab.path(name + ".txt")
        with open(path, "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")
        done = cls.lab.viommu("replay", f"--trace={path}", "--policy=strict", "--json=-")
        assert done.returncode == 0, done.stderr
        row = json.loads(done.stdout)
        row = row["rows"][0] if "rows" in row else row
        return {k: v for k, v in row.items()
                if isinstance(v, (int, float)) and "wall" not in k and not k.endswith("lines")}

    def test_trace_cmd(self):
        # libtraceevent: no flags column unless asked for; a line before the first event.
        lines = ["cpus=2"] + [
            f"{task[:16]:>16}-{pid:<5} [{cpu}] {s:>5}.{us}: {event + ':':<20} {text}"
            for task, pid, cpu, s, us, event, text in self.events]
        self.assertEqual(self.replay("trace-cmd", lines), self.expected)

    def test_perf(self):
        lines = [f"{task[:16]:>16} {pid:>7} [{cpu}] {s:>5}.{us}000: {'iommu:' + event:>20}: {text}"
                 for task, pid, cpu, s, us, event, text in self.events]
        self.assertEqual(self.replay("perf", lines), self.expected)

    def test_bpftrace(self):
        """With the format strings of the document."""
        program = blocks(RECIPES, "bpftrace")[0]
        formats = {name: text.replace("\\n", "").replace("llx", "x") for name, text in
                   re.findall(r'tracepoint:iommu:(\w+) {\s*printf\("(.*?)"', program, re.S)}
        self.assertEqual(set(formats), {"map", "unmap"})
        lines = []
        for task, pid, cpu, s, us, event, text in self.events:
            n = numbers(text)
            head = (task, int(pid), int(cpu), int(s), int(us) * 1000, n["iova"], n["iova"] + n["size"])
            rest = (n["paddr"], n["size"]) if event == "map" else (n["size"], n["unmapped_size"])
            lines.append(formats[event] % (*head, *rest))
        self.assertEqual(self.replay("bpftrace", lines), self.expected)

    def test_lost_events_are_refused(self):
        path = self.lab.path("lost.txt")
        with open(path, "w", encoding="utf-8") as f:
            for task, pid, cpu, s, us, event, text in self.events[:100]:
                f.write(f"{task}-{pid} [{cpu}] ..... {s}.{us}: {event}: {text}\n")
            f.write("Lost 12 events\n")
        done = self.lab.viommu("replay", f"--trace={path}", "--policy=strict")
        self.assertNotEqual(done.returncode, 0)


class Names(unittest.TestCase):
    def test_files_that_documents_name_exist(self):
        documents = ["README.md", "deploy/README.md", *(os.path.relpath(p, ROOT)
                                           for p in glob.glob(f"{ROOT}/deploy/docs/*.md"))]
        self.assertEqual(len(documents), 6)
        seen = 0
        for document in documents:
            text = re.sub(r"^```.*?^```$", "", read(document), flags=re.M | re.S)
            for name in re.findall(r"`([\w./-]+/[\w./-]+\.(?:h|cc|md|sh|yml|yaml|py))`", text):
                candidates = [name, f"deploy/{name}", f"deploy/prometheus/{name}"]
                self.assertTrue(any(os.path.exists(os.path.join(ROOT, c)) for c in candidates),
                                (document, name))
                seen += 1
            for link in re.findall(r"\]\(([\w./-]+)\)", text):
                self.assertTrue(os.path.exists(os.path.join(ROOT, os.path.dirname(document), link)),
                                (document, link))
        self.assertGreater(seen, 12)

    def test_readme_names_every_command(self):
        text = subprocess.run([os.path.join(BINARIES, "viommu"), "--help"], capture_output=True,
                              text=True, check=True).stdout
        commands = set(re.findall(r"^  ([a-z]+) ", text, re.M))
        section = read("README.md").split("### The command `viommu`")[1].split("\n### ")[0]
        named = set(re.findall(r"`([a-z]+)`", section)) | set(re.findall(r"viommu ([a-z]+) bash", section))
        self.assertEqual(named - {"viommu"}, commands)

    def test_picture_is_small_enough(self):
        self.assertLess(os.path.getsize(os.path.join(ROOT, "deploy/docs/report.png")), 200 * 1024)

    def test_symbols_of_extend_exist(self):
        pairs = {"iommu_core/dma/guest_config.cc": ["kPolicies", "DecidePolicy"],
                 "iommu_core/dma/invalidation.cc": ["Defer", "QueueOf", "FlushQueued",
                                                    "InvalidateDomain", "InvalidatePieces"],
                 "iommu_core/shadow/shadow.h": ["SyncRange", "ForgetAll", "account",
                                                "bookkeeping_bytes"],
                 "iommu_core/shadow/session_sync.cc": ["SessionImpl::MakeShadow"],
                 "hypervisor_svc/hypervisor_counters.h": ["kStrategies"]}
        text = read("deploy/docs/extend.md")
        for path, symbols in pairs.items():
            for symbol in symbols:
                self.assertIn(f"`{symbol}`", text)
                self.assertRegex(read(path), rf"\b{symbol}\b", path)

    def test_alerts_of_the_table_are_the_rules(self):
        named = set(re.findall(r"`(Viommu\w+)`", read("deploy/README.md")))
        self.assertEqual(named, set(re.findall(r"alert: (\w+)", read("deploy/prometheus/rules/viommu.yml"))))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
