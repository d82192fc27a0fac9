#!/usr/bin/env python3
"""The command viommu as a user meets it: exit codes, one-line errors, real service processes.

cli_test.py BIN_FOLDER TEST_DATA: BIN_FOLDER holds viommu, guest_svc and hypervisor_svc.
"""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN = pathlib.Path(sys.argv[1])
DATA = pathlib.Path(sys.argv[2])
SMALL_TRACE = DATA / "linux/6.1_cmon_strict0_huge/trace.txt.gz"
W128K_TRACE = DATA / "linux/6.1_cmon_strict0_w128k/trace.txt.gz"
LAZY_TRACE = DATA / "linux/6.1_cmoff_strict0_w128k/trace.txt.gz"


def viommu(*args, **kwargs):
    return subprocess.run([BIN / "viommu", *map(str, args)], capture_output=True, text=True,
                          timeout=900, **kwargs)


def page_descriptors(lines):
    """Sorted (address, mask, hint) of the page-selective IOTLB descriptors."""
    found = []
    for lo, hi in lines:
        if lo & 0xF == 2 and lo >> 4 & 3 == 3:
            found.append((hi & ~0xFFF, hi & 0x3F, hi >> 6 & 1))
    return sorted(found)


class Errors(unittest.TestCase):
    """Bad input: one clear line on standard error and the right exit code."""

    def check(self, code, text, *args):
        result = viommu(*args)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertIn(text, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)

    def test_usage(self):
        self.check(2, "no command 'frobnicate'", "frobnicate")
        self.check(2, "unknown flag '--frob'", "compare", "--frob=1")
        self.check(2, "one of --trace and --workload", "compare")
        self.check(2, "--trace is needed", "replay")
        self.check(2, "--memory and --registers are needed", "inspect")
        self.check(2, "--guest is needed", "load")
        self.check(2, "--hypervisor is needed", "status")
        self.check(2, "no file of cases", "conformance")

    def test_names(self):
        self.check(2, "unknown policy 'eager'", "compare", "--workload=rr", "--policies=eager")
        self.check(2, "guess", "compare", "--workload=rr", "--strategies=guess")
        self.check(2, 'no workload "x"', "compare", "--workload=x")
        self.check(2, 'no cost preset "x"', "compare", "--workload=rr", "--cost_preset=x")
        self.check(2, "--vcpus: 1 is not between 2 and", "compare", f"--trace={SMALL_TRACE}",
                   "--vcpus=1")

    def test_damaged_trace(self):
        with tempfile.TemporaryDirectory() as folder:
            cut = pathlib.Path(folder) / "cut.gz"
            cut.write_bytes(SMALL_TRACE.read_bytes()[:20000])
            self.check(2, "truncated gzip after line", "replay", f"--trace={cut}")
            text = gzip.decompress(SMALL_TRACE.read_bytes())
            plain = pathlib.Path(folder) / "cut.txt"
            plain.write_bytes(text[:100000])
            self.check(2, "cut short", "compare", f"--trace={plain}")
            plain.write_bytes(text[: text.rindex(b"\n", 0, 100000) + 1])
            self.check(2, "truncated after line", "compare", f"--trace={plain}")
        self.check(2, "this is no ftrace or perf text", "replay", "--trace=/etc/passwd")
        self.check(2, "/nonexistent", "replay", "--trace=/nonexistent")
        self.check(2, "--verify needs caching mode", "replay", f"--trace={LAZY_TRACE}",
                   "--verify=full")

    def test_no_image(self):
        snap = DATA / "linux/6.1_cmon_strict0_snap/snap0"
        self.check(2, "is no memory image", "inspect", "--memory=/etc/passwd",
                   f"--registers={snap / 'snapshot.json'}")
        self.check(2, "is no register file", "inspect",
                   f"--memory={snap / 'table_pages.bin.gz'}", "--registers=/etc/passwd")

    def test_nobody_listens(self):
        self.check(1, "nobody listens on unix:/tmp/viommu-none.sock", "status",
                   "--hypervisor=unix:/tmp/viommu-none.sock")
        self.check(1, "nobody listens on", "load", "--guest=127.0.0.1:1")

    def test_help(self):
        for command in ["compare", "replay", "inspect", "load", "status", "conformance"]:
            result = viommu(command, "--help")
            self.assertEqual(result.returncode, 0)
            self.assertIn("Examples:", result.stdout)
            self.assertIn("--json", result.stdout)


class Compare(unittest.TestCase):
    ARGS = [f"--trace={SMALL_TRACE}", "--policies=strict,lazy", "--strategies=walk,walk-shared",
            "--live_pages=64,2k", "--verify=full", "--json=-"]

    def test_rows(self):
        first = viommu("compare", *self.ARGS)
        self.assertEqual(first.returncode, 0, first.stderr)
        document = json.loads(first.stdout)
        self.assertEqual(document["schema"], "viommu.compare.v1")
        rows = {(r["strategy"], r["live_pages"], r["policy"]): r for r in document["rows"]}
        self.assertEqual(len(rows), 8)
        for row in rows.values():
            self.assertEqual(row["shadow_mismatches"], 0)
            self.assertGreater(row["verified_pages"], 0)
            self.assertEqual(row["failed_ops"], 0)
            self.assertEqual(row["unmaps"], 732)
        for strategy in ["walk", "walk-shared"]:
            for live in [64, 2048]:
                strict, lazy = rows[strategy, live, "strict"], rows[strategy, live, "lazy"]
                self.assertEqual(strict["stale_page_seconds"], 0)
                self.assertEqual(strict["stale_dma_hits"], 0)
                self.assertGreater(lazy["stale_page_seconds"], 0)
                self.assertGreater(lazy["stale_dma_hits"], 0)
                self.assertLess(lazy["exits"], strict["exits"])
            # A domain flush reads the tables of everything that lives, a page's invalidation does
            # not: the live set costs lazy and leaves strict alone.
            self.assertGreater(rows[strategy, 2048, "lazy"]["ptes_read"],
                               rows[strategy, 64, "lazy"]["ptes_read"])
        # The same arguments give the same rows but for what is measured on this machine's clock.
        second = viommu("compare", *self.ARGS)
        strip = lambda d: [{k: v for k, v in r.items() if not k.startswith("wall_")}
                           for r in json.loads(d)["rows"]]
        self.assertEqual(strip(first.stdout), strip(second.stdout))

    def test_workload_report_and_vcpus(self):
        with tempfile.TemporaryDirectory() as folder:
            report = pathlib.Path(folder) / "r.html"
            result = viommu("compare", "--workload=rr", "--ops=500", "--vcpus=1,2",
                            "--live_pages=16,256", "--strategies=walk", f"--report={report}")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("`lazy` makes the hypervisor read", result.stdout)
            self.assertIn("lazy-single", result.stdout)
            html = report.read_text()
            self.assertIn('class="verdict">Cheapest per unmap', html)
            self.assertNotIn(" src=", html)


class Merge(unittest.TestCase):
    SWEEP = ["compare", "--workload=rr", "--ops=300", "--policies=strict,lazy,lazy-psi",
             "--live_pages=16,256", "--vcpus=1,2", "--strategies=walk"]

    def test_shards_are_the_sweep(self):
        with tempfile.TemporaryDirectory() as folder:
            parts = []
            for shard in range(3):
                parts.append(f"{folder}/{shard}.json")
                result = viommu(*self.SWEEP, f"--shard={shard}/3", f"--json={parts[-1]}")
                self.assertEqual(result.returncode, 0, result.stderr)
            report = f"{folder}/all.html"
            merged = viommu("merge", "--json=-", f"--report={report}", *reversed(parts))
            self.assertEqual(merged.returncode, 0, merged.stderr)
            whole = json.loads(viommu(*self.SWEEP, "--json=-").stdout)
            strip = lambda d: [{k: v for k, v in r.items() if not k.startswith("wall_")}
                               for r in d["rows"]]
            document = json.loads(merged.stdout)
            self.assertEqual(strip(document), strip(whole))
            self.assertEqual(document["answer"], whole["answer"])
            self.assertTrue(os.path.getsize(report) > 1000)
            # Modelled time is the counts times the preset's constants: nothing else went in.
            prices = {c["name"]: c["value_ns"] for c in document["cost_constants"]}
            for row in document["rows"]:
                self.assertEqual(set(row["priced_events"]), set(prices))
                total = sum(n * prices[name] for name, n in row["priced_events"].items())
                total += row["modelled_ns"]["wait"]
                self.assertAlmostEqual(total / row["modelled_ns_total"], 1, places=9)
            missing = viommu("merge", parts[0], parts[2])
            self.assertEqual(missing.returncode, 1)
            self.assertIn("--shard=1/3", missing.stderr)

    def test_wrong_use(self):
        for code, text, *args in [
                (2, "no file to merge", "merge"),
                (2, "/nonexistent", "merge", "/nonexistent"),
                (2, "is no JSON", "merge", "/etc/passwd"),
                (2, "is not I/N with I below N", *self.SWEEP, "--shard=3/3")]:
            result = viommu(*args)
            self.assertEqual(result.returncode, code, result.stderr)
            self.assertIn(text, result.stderr)


class Help(unittest.TestCase):
    def commands(self):
        text = viommu("--help").stdout
        return [line.split()[0] for line in text.splitlines() if line.startswith("  ")]

    def test_every_command_has_examples(self):
        commands = self.commands()
        self.assertGreaterEqual(len(commands), 12)
        for command in commands:
            result = viommu(command, "--help")
            self.assertEqual(result.returncode, 0, command)
            examples = result.stdout.split("Examples:\n")[1]
            self.assertIn(f"viommu {command}", examples)

    def complete(self, *words):
        """What bash offers for the last word."""
        script = ('source <("$1" completion bash); shift; COMP_WORDS=("$@"); '
                  'COMP_CWORD=$(($# - 1)); _viommu "$1"; printf "%s\n" "${COMPREPLY[@]}"')
        result = subprocess.run(["bash", "-c", script, "bash", BIN / "viommu", BIN / "viommu", *words],
                                capture_output=True, text=True, timeout=60)
        self.assertEqual(result.stderr, "")
        return result.stdout.split()

    def test_completion(self):
        self.assertEqual(self.complete("comp"), ["compare", "completion"])
        self.assertEqual(set(self.commands()) | {"--help", "--version"}, set(self.complete("")))
        self.assertEqual(self.complete("compare", "--live"), ["--live_pages"])
        self.assertEqual(self.complete("compare", "--strategies", "=", "walk,snap"),
                         ["walk,snapshot"])
        self.assertEqual(self.complete("load", "--workload", "=", "nvme"),
                         ["nvme-4k-rr", "nvme-64k-rw"])
        # The names that are offered are all there are.
        refused = viommu("compare", "--workload=rr", "--policies=no").stderr
        self.assertEqual(self.complete("compare", "--policies", "="),
                         refused.strip().split("one of: ")[1].split(", "))


class Replay(unittest.TestCase):
    def replay(self, trace, *args):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "d.jsonl"
            result = viommu("replay", f"--trace={trace}", f"--descriptors={out}", "--json=-", *args)
            self.assertEqual(result.returncode, 0, result.stderr)
            lines = [json.loads(line) for line in out.read_text().splitlines()]
        self.assertEqual([line["n"] for line in lines], list(range(len(lines))))
        return json.loads(result.stdout), [(int(l["lo"], 0), int(l["hi"], 0)) for l in lines]

    @staticmethod
    def kernel(trace):
        found = []
        for line in gzip.decompress(trace.read_bytes()).decode().splitlines():
            if " qi_submit: " in line:
                words = line.rsplit("dmar0: ", 1)[1].split()
                found.append((int(words[0], 0), int(words[1], 0)))
        return found

    def test_strict_is_the_kernels_own(self):
        counts, ours = self.replay(W128K_TRACE, "--policy=strict", "--verify=sampled")
        self.assertTrue(counts["caching_mode"])
        self.assertEqual(counts["ih"], "never")
        self.assertEqual(counts["failed_ops"], 0)
        real, got = page_descriptors(self.kernel(W128K_TRACE)), page_descriptors(ours)
        odd = len(real) + len(got) - 2 * len(_common(real, got))
        self.assertLessEqual(odd, 0.001 * len(real))
        waits = sum(1 for lo, _ in ours if lo & 0xF == 5)
        self.assertGreaterEqual(waits, len(got))

    def test_lazy_without_caching_mode(self):
        counts, _ = self.replay(LAZY_TRACE, "--policy=lazy")
        self.assertFalse(counts["caching_mode"])
        real = sum(1 for lo, _ in self.kernel(LAZY_TRACE) if lo & 0xF == 2 and lo >> 4 & 3 == 2)
        self.assertLessEqual(abs(counts["descriptors"]["iotlb_domain"] - real), 0.35 * real)


def _common(a, b):
    from collections import Counter
    return list((Counter(a) & Counter(b)).elements())


class Anchors(unittest.TestCase):
    def test_published_figures_are_met_or_known_to_be_missed(self):
        result = viommu("anchors", "--json=-")
        self.assertEqual(result.returncode, 0, result.stderr)
        anchors = json.loads(result.stdout)["anchors"]
        runs = [a for a in anchors if a["from"] == "run"]
        self.assertGreaterEqual(len(runs), 12)
        missed = sorted(a["id"] for a in anchors if not a["in_band"])
        self.assertEqual(missed, ["A18", "A7", "A9"])
        self.assertTrue(all(a["known_miss"] for a in anchors if not a["in_band"]))


class Calibrate(unittest.TestCase):
    def test_a_preset_that_the_other_commands_take(self):
        with tempfile.TemporaryDirectory() as folder:
            benchmark = pathlib.Path(folder) / "strict.txt"
            benchmark.write_text(
                "dma mapping benchmark: threads:1 seconds:20 node:-1 dir:BIDIRECTIONAL granule: 1\n"
                "average map latency(us):310.0 standard deviation:4.0\n"
                "average unmap latency(us):270.0 standard deviation:3.0\n")
            result = viommu("calibrate", f"--strict={benchmark}",
                            f"--qemu_log={DATA / 'qemu/vfio-shadow.log.gz'}", "--name=lab7",
                            "--out=lab7.textproto", cwd=folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("--cost_preset=lab7.textproto", result.stdout)
            run = ["compare", "--workload=rr", "--ops=200", "--policies=strict",
                   "--strategies=walk", "--live_pages=0", "--json=-"]
            rows = {}
            for preset in ["lab7.textproto", "qemu-trap"]:
                result = viommu(*run, f"--cost_preset={preset}", cwd=folder)
                self.assertEqual(result.returncode, 0, result.stderr)
                document = json.loads(result.stdout)
                rows[document["cost_preset"]] = document["rows"][0]
            self.assertEqual(set(rows), {"lab7", "qemu-trap"})
            self.assertGreater(rows["lab7"]["modelled_ns_total"],
                               rows["qemu-trap"]["modelled_ns_total"])


class Inspect(unittest.TestCase):
    def inspect(self, run, *args):
        snap = DATA / "linux" / run / "snap0"
        result = viommu("inspect", f"--memory={snap / 'table_pages.bin.gz'}",
                        f"--registers={snap / 'snapshot.json'}", "--json=-", *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        pages = {}
        for m in json.loads(result.stdout)["mappings"]:
            first, end, gpa = (int(m[k], 0) for k in ("iova", "iova_end", "gpa"))
            for offset in range(0, end - first, 4096):
                pages[m["device"], first + offset] = gpa + offset
        return pages

    def expected(self, run):
        pages = {}
        text = (DATA / "linux" / run / "snap0/expected_mappings.jsonl").read_text()
        for line in text.splitlines():
            m = json.loads(line)
            for device in m["devices"]:
                for offset in range(0, m["size"], 4096):
                    pages[device, int(m["iova"], 0) + offset] = int(m["pa"], 0) + offset
        return pages

    def test_walked_and_through_a_session(self):
        for run in ["6.1_cmon_strict0_snap", "6.1_cmoff_strict0_snap_aw48"]:
            expected = self.expected(run)
            self.assertGreater(len(expected), 10000)
            self.assertEqual(self.inspect(run), expected)
            self.assertEqual(self.inspect(run, "--shadow"), expected)


class Processes(unittest.TestCase):
    """Services of one's own: started by hand, driven, killed."""

    def start(self, name, *args):
        process = subprocess.Popen([BIN / name, *args], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        line = process.stdout.readline()
        if not line.startswith("READY grpc="):
            self.fail(line + process.communicate()[1])
        return process, line.split("grpc=")[1].split()[0]

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=20)
        process.stdout.close()
        process.stderr.close()
        return code

    def test_load_status_and_death(self):
        with tempfile.TemporaryDirectory() as folder:
            memory = f"--memory_socket={folder}/m.sock"
            hypervisor, address = self.start("hypervisor_svc", "--listen=127.0.0.1:0", memory,
                                             "--metrics=off")
            guest, guest_address = self.start("guest_svc", "--listen=127.0.0.1:0", memory,
                                              f"--hypervisor={address}", "--metrics=off")
            result = viommu("load", f"--guest={guest_address}", "--duration=1s",
                            "--concurrency=2", "--workload=nvme-4k-rr", "--json=-")
            self.assertEqual(result.returncode, 0, result.stderr)
            summary = json.loads(result.stdout)
            self.assertGreater(summary["map"]["count"], 10)
            self.assertEqual(summary["errors"], 0)
            result = viommu("status", f"--hypervisor={address}", "--json=-")
            self.assertEqual(result.returncode, 0, result.stderr)
            sessions = json.loads(result.stdout)["sessions"]
            self.assertEqual(len(sessions), 1)
            # Live: a load while top looks twice.
            load = subprocess.Popen([BIN / "viommu", "load", f"--guest={guest_address}",
                                     "--duration=20s"], stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL)
            time.sleep(0.5)
            result = viommu("top", f"--hypervisor={address}", f"--guest={guest_address}", "--once",
                            "--interval=1s", "--json=-")
            load.send_signal(signal.SIGINT)
            load.wait(timeout=20)
            self.assertEqual(result.returncode, 0, result.stderr)
            busy = json.loads(result.stdout)["sessions"][0]
            self.assertEqual(busy["session_id"], sessions[0]["session_id"])
            self.assertEqual(busy["policy"], "strict")
            self.assertGreater(busy["unmaps_per_second"], 5)
            self.assertGreater(busy["modelled_ns_per_unmap"], 6700)
            self.assertEqual(busy["stale_pages"], 0)
            # Elsewhere than on a terminal it repeats plainly, until a signal.
            top = subprocess.Popen([BIN / "viommu", "top", f"--hypervisor={address}",
                                    "--interval=100ms"], stdout=subprocess.PIPE, text=True)
            lines = [top.stdout.readline() for _ in range(6)]
            top.send_signal(signal.SIGINT)
            self.assertEqual(top.wait(timeout=20), 0)
            top.stdout.close()
            self.assertNotIn("\033", "".join(lines))
            self.assertEqual(sum("sessions: 1," in line for line in lines), 2)
            self.assertTrue(sessions[0]["connected"])
            self.assertGreater(sessions[0]["descriptors"], 20)
            # Its hypervisor gone, the guest must say so, not hang.
            hypervisor.kill()
            hypervisor.wait()
            hypervisor.stdout.close()
            hypervisor.stderr.close()
            begin = time.monotonic()
            result = viommu("load", f"--guest={guest_address}", "--duration=2s")
            self.assertEqual(result.returncode, 1, result.stdout)
            self.assertEqual(result.stderr.strip().count("\n"), 0, result.stderr)
            self.assertLess(time.monotonic() - begin, 60)
            self.assertEqual(self.stop(guest), 0)

    def test_a_private_pair_leaves_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            environment = dict(os.environ, TMPDIR=folder)
            for how in [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]:
                client = subprocess.Popen(
                    [BIN / "viommu", "compare", "--workload=rr", "--ops=1g"], env=environment,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                pair = []
                for _ in range(100):
                    time.sleep(0.1)
                    pair = self.children(client.pid)
                    if len(pair) == 2:
                        break
                self.assertEqual(len(pair), 2)
                time.sleep(0.3)
                client.send_signal(how)
                client.wait(timeout=20)
                for _ in range(50):
                    if not any(self.runs(pid) for pid in pair):
                        break
                    time.sleep(0.1)
                self.assertFalse(any(self.runs(pid) for pid in pair), how)
                if how != signal.SIGKILL:
                    self.assertEqual(os.listdir(folder), [])

    @staticmethod
    def children(pid):
        found = []
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            found += (task / "children").read_text().split()
        return [int(p) for p in found]

    @staticmethod
    def runs(pid):
        try:
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
