"""Metrics, rules and dashboards against what really runs: both services under load, a real
Prometheus that scrapes them with the shipped rules, every query of every panel.

dashboards_test.py BINARIES ROOT
"""
import glob
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import unittest

import lab

BINARIES, ROOT = sys.argv[1:3]
RULES = os.path.join(ROOT, "deploy/prometheus/rules/viommu.yml")
DASHBOARDS = sorted(glob.glob(os.path.join(ROOT, "deploy/grafana/dashboards/*.json")))
DATA_SECONDS = 90
# What every release exports, by contract; histograms by their _count.
HYPERVISOR_METRICS = """
viommu_sync_wall_seconds_count viommu_sync_ptes_read_total viommu_sync_bytes_read_total
viommu_sync_ptes_changed_total viommu_dma_maps_total viommu_dma_unmaps_total viommu_pinned_bytes
viommu_shadow_table_pages viommu_shadow_mismatches_total viommu_iotlb_lookups_total
viommu_iotlb_invalidations_total viommu_dma_faults_total viommu_stale_dma_hits_total viommu_sessions
viommu_session_resyncs_total viommu_modelled_seconds_total viommu_build_info
viommu_remote_pages_total viommu_remote_wait_wall_seconds_count viommu_remote_failures_total
""".split()
GUEST_METRICS = """
viommu_dma_ops_total viommu_iova_allocated_bytes viommu_flush_queue_entries
viommu_flush_queue_flushes_total viommu_invalidation_descriptors_total viommu_submissions_total
viommu_invalidation_ack_wall_seconds_count viommu_stale_pages viommu_stale_page_seconds_total
viommu_stream_reconnects_total
""".split()
# Panels whose every series is rightly 0 while nothing goes wrong; all others must show a value
# above 0 somewhere under load.
QUIET = {"Shadow mismatches", "Stream reconnects", "Session resyncs",
         "Blocked device accesses by reason", "Pages refused by a limit",
         "Refused messages of guests", "Devices blocked for lack of a shadow"}


def panels():
    for path in DASHBOARDS:
        with open(path, encoding="utf-8") as f:
            dashboard = json.load(f)
        for panel in dashboard["panels"]:
            yield os.path.basename(path), panel


def finite(series):
    return [s for s in series if math.isfinite(float(s["value"][1]))]


class Dashboards(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = lab.Lab(BINARIES)
        cls.addClassCleanup(cls.lab.__exit__)
        # Every page is compared with the oracle, so that a mismatch would show.
        _, hypervisor, cls.hypervisor_metrics = cls.lab.hypervisor(
            "hypervisor", "--strategy=walk-shared", "--verify=full")
        _, strict, strict_metrics = cls.lab.guest("strict", hypervisor, "--policy=strict")
        _, lazy, lazy_metrics = cls.lab.guest("lazy", hypervisor, "--policy=lazy", "--force_lazy")
        _, remote, remote_metrics = cls.lab.guest("remote", hypervisor, "--memory=remote")
        cls.guest_metrics = [strict_metrics, lazy_metrics, remote_metrics]
        cls.url = cls.lab.prometheus(RULES, {"viommu_hypervisor": [cls.hypervisor_metrics],
                                             "viommu_guest": cls.guest_metrics})
        for name, address in (("strict", strict), ("lazy", lazy), ("remote", remote)):
            cls.lab.spawn(f"load-{name}", [os.path.join(BINARIES, "viommu"), "load",
                                           f"--guest={address}", "--rate=400", "--duration=10m"],
                          stdout=subprocess.DEVNULL)
        # Devices that touch what was unmapped: look-ups in the IOTLB and stale hits. Beside the
        # load, again and again, so that rates see them grow.
        cls.compare = ["compare", f"--guest={lazy}", f"--hypervisor={hypervisor}", "--policies=lazy",
                       "--strategies=walk-shared", "--workload=nic-rx-classic", "--live_pages=1024",
                       "--ops=300", "--json=-"]

    def check_panels(self):
        """Every query that is not yet as it should be, as (dashboard, panel, query, why)."""
        problems = []
        for dashboard, panel in panels():
            highest = 0.0
            for target in panel["targets"]:
                where = (dashboard, panel["title"], target["expr"])
                series = lab.query(self.url, target["expr"])
                if not finite(series):
                    problems.append((*where, "no data"))
                    continue
                # A gauge may be 0 at this moment: what counts is the last minute.
                minute = lab.query(self.url, f"max_over_time(({target['expr']})[1m:1s])")
                highest = max([highest] + [float(s["value"][1]) for s in finite(minute)])
                for label in re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]):
                    if any(label not in s["metric"] for s in series):
                        problems.append((*where, f"a series has no label '{label}' for its legend"))
            if highest <= 0 and panel["title"] not in QUIET:
                problems.append((dashboard, panel["title"], "", "nothing but 0 under load"))
        return problems

    def test_every_panel_shows_data(self):
        deadline = time.monotonic() + DATA_SECONDS
        while True:
            done = self.lab.viommu(*self.compare)
            self.assertEqual(done.returncode, 0, done.stderr)
            problems = self.check_panels()
            if not problems or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        self.assertEqual(problems, [])
        self.assertGreaterEqual(len(list(panels())), 20)

    def test_rules_evaluate(self):
        time.sleep(1.5)  # one evaluation
        groups = json.loads(lab.http(f"{self.url}/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        self.assertGreaterEqual(len(rules), 15)
        self.assertEqual([r["name"] for r in rules if r["health"] == "err"], [])

    def test_promtool_accepts_the_metrics(self):
        for address in [self.hypervisor_metrics, *self.guest_metrics]:
            page = lab.http(f"http://{address}/metrics")
            checked = subprocess.run(["promtool", "check", "metrics"], input=page, text=True,
                                     capture_output=True, check=False)
            self.assertEqual((checked.returncode, checked.stdout + checked.stderr), (0, ""))

    def test_the_contract_is_exported(self):
        for address, names in [(self.hypervisor_metrics, HYPERVISOR_METRICS),
                               (self.guest_metrics[1], GUEST_METRICS)]:
            found = set(re.findall(r"^(\w+)[{ ]", lab.http(f"http://{address}/metrics"), re.M))
            self.assertEqual(set(names) - found, set())

    def test_what_rules_and_panels_name_exists(self):
        """A misspelt name in an alert gives no error and no alert: names are compared with what is
        exported or recorded."""
        with open(RULES, encoding="utf-8") as f:
            rules = f.read()
        used = set(re.findall(r"\bviommu_\w+", "\n".join(
            [re.sub(r"^\s*(- name|#).*$", "", rules, flags=re.M)] +
            [t["expr"] for _, p in panels() for t in p["targets"]])))
        used -= set(re.findall(r":(viommu_\w+)", rules))  # names of recorded series
        exported = set()
        for address in [self.hypervisor_metrics, *self.guest_metrics]:
            exported |= set(re.findall(r"^(\w+)[{ ]", lab.http(f"http://{address}/metrics"), re.M))
        self.assertEqual(used - exported, set())


class Files(unittest.TestCase):
    def test_dashboards_have_ids_places_and_explanations(self):
        uids = set()
        for path in DASHBOARDS:
            with open(path, encoding="utf-8") as f:
                dashboard = json.load(f)
            self.assertNotIn(dashboard["uid"], uids)
            uids.add(dashboard["uid"])
            self.assertEqual(dashboard["templating"]["list"][0]["query"], "prometheus")
            ids = [p["id"] for p in dashboard["panels"]]
            self.assertEqual(len(ids), len(set(ids)), path)
            taken = set()
            for p in dashboard["panels"]:
                place = p["gridPos"]
                cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                         for y in range(place["y"], place["y"] + place["h"])}
                self.assertFalse(cells & taken, (path, p["title"]))
                self.assertLessEqual(place["x"] + place["w"], 24)
                taken |= cells
                self.assertEqual(p["datasource"]["uid"], "${datasource}")
        self.assertGreaterEqual(len(uids), 5)

    def test_provisioning_finds_the_dashboards(self):
        """The folder that Grafana is told of is the one that compose mounts the files at."""
        with open(os.path.join(ROOT, "deploy/grafana/provisioning/dashboards/viommu.yml"),
                  encoding="utf-8") as f:
            folder = re.search(r"path: (\S+)", f.read()).group(1)
        with open(os.path.join(ROOT, "deploy/compose.yaml"), encoding="utf-8") as f:
            self.assertIn(f"./grafana/dashboards:{folder}:ro", f.read())


if __name__ == "__main__":
    for tool in ("prometheus", "promtool"):
        if shutil.which(tool) is None:
            lab.skip(f"{tool} is not installed (deploy/install-deps.sh)")
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
