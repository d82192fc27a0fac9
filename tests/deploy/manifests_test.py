"""Containerfile, compose files and Kubernetes manifests: against the published schemas, and against
what the programs really accept.

manifests_test.py BINARIES ROOT
"""
import copy
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import unittest

import lab

try:
    import jsonschema
    import yaml
except ImportError as missing:
    lab.skip(f"{missing.name} is not installed (deploy/install-deps.sh)")

BINARIES, ROOT = sys.argv[1:3]
DEPLOY = os.path.join(ROOT, "deploy")
SCHEMAS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schemas")
PROGRAMS = ("hypervisor_svc", "guest_svc", "viommu")
# Not flags: names that other variables of a pod expand.
HELPERS = {"SHARD", "SHARDS"}


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def schema(name):
    with open(os.path.join(SCHEMAS, name + ".json"), encoding="utf-8") as f:
        return json.load(f)


def help_text(program, *command):
    return subprocess.run([os.path.join(BINARIES, program), *command, "--help"], text=True,
                          capture_output=True, check=True).stdout


def flags_of(program, *command):
    return set(re.findall(r"^  --(\w+)$", help_text(program, *command), re.M))


def problems(validator, document):
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}"
            for e in validator.iter_errors(document)]


class Containerfile(unittest.TestCase):
    """Stages and sources; building it is deploy/containers/test.sh."""

    def setUp(self):
        text = re.sub(r"\\\n", " ", read("deploy/containers/Containerfile"))
        self.stages, self.copies = {}, []
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            if word == "FROM":
                base, _, name = re.match(r"(\S+)( AS (\S+))?", rest).groups()
                self.stages[name] = {"base": base, "lines": []}
            elif word.isupper() and self.stages:
                self.stages[name]["lines"].append((word, rest.strip()))
                if word == "COPY" and "--from" not in rest:
                    self.copies += rest.split()[:-1]

    def test_an_image_for_each_program(self):
        for program in PROGRAMS:
            stage = self.stages[program]
            self.assertEqual(stage["base"], "runtime")
            entry = [json.loads(rest) for word, rest in stage["lines"] if word == "ENTRYPOINT"]
            self.assertEqual(entry, [[program]])  # no shell in between: signals arrive
        for service in PROGRAMS[:2]:
            check = [rest for word, rest in self.stages[service]["lines"] if word == "HEALTHCHECK"]
            command = json.loads(re.search(r"CMD (\[.*\])", check[0]).group(1))
            self.assertEqual(command[:2], ["viommu", "health"])

    def test_the_runtime_is_no_builder(self):
        lines = self.stages["runtime"]["lines"]
        self.assertIn(("USER", "65532:65532"), lines)
        installed = " ".join(rest for word, rest in lines if word == "RUN")
        self.assertNotRegex(installed, r"g\+\+ |-dev\b|cmake|\bgcc\b")

    def test_what_is_copied_is_in_the_context(self):
        kept = re.findall(r"^!(\S+)$", read(".dockerignore"), re.M)
        for path in kept:
            if not path.startswith("build/"):  # only there once built
                self.assertTrue(os.path.exists(os.path.join(ROOT, path)), path)
        for path in self.copies:
            if path != ".":
                self.assertTrue(any(path.startswith(k) or k == path for k in kept), path)
        # Everything that CMake descends into, tests aside.
        for folder in re.findall(r"^add_subdirectory\((\w+)\)", read("CMakeLists.txt"), re.M):
            self.assertIn(folder, kept)

    def test_environment_names_flags(self):
        for program in PROGRAMS[:2]:
            names = [n for word, rest in self.stages[program]["lines"] if word == "ENV"
                     for n in re.findall(r"VIOMMU_(\w+)=", rest)]
            self.assertGreater(len(names), 2)
            self.assertEqual({n.lower() for n in names} - flags_of(program), set())


class Compose(unittest.TestCase):
    def load(self, name):
        return yaml.safe_load(read(f"deploy/{name}"))

    def test_schema(self):
        validator = jsonschema.Draft7Validator(schema("compose"))
        for name in ("compose.yaml", "compose.tls.yaml"):
            self.assertEqual(problems(validator, self.load(name)), [], name)
        wrong = self.load("compose.yaml")
        wrong["services"]["hypervisor"]["enviroment"] = {}
        self.assertNotEqual(problems(validator, wrong), [])

    def test_services_fit_together(self):
        compose, tls = self.load("compose.yaml"), self.load("compose.tls.yaml")
        services = compose["services"]
        ours = [n for n, s in services.items() if "viommu" in s["image"].lower()]
        self.assertEqual(len(ours), 5)
        self.assertEqual(set(tls["services"]), set(ours))
        stages = re.findall(r" AS (\S+)$", read("deploy/containers/Containerfile"), re.M)
        for name in ours:
            service = services[name]
            program = re.search(r"}/(\w+):", service["image"]).group(1)
            self.assertTrue(service["read_only"] and service["cap_drop"] == ["ALL"], name)
            if "build" in service:
                self.assertEqual(service["build"]["target"], program)
                self.assertIn(program, stages)
            flags = flags_of(program, *service.get("command", [])[:1])
            for source in (service, tls["services"][name]):
                named = {n.removeprefix("VIOMMU_").lower() for n in source["environment"]}
                self.assertEqual(named - flags, set(), name)
            for argument in service.get("command", [])[1:]:
                self.assertIn(re.match(r"--(\w+)=", argument).group(1), flags)
        policies = {services[n]["environment"]["VIOMMU_POLICY"] for n in ours if "guest" in n}
        self.assertEqual(policies, {"strict", "lazy"})
        for service in services.values():
            for mount in service["volumes"]:
                source = mount.split(":")[0]
                if source.startswith("./"):
                    self.assertTrue(os.path.exists(os.path.join(DEPLOY, source)), source)
                else:
                    self.assertIn(source, compose["volumes"])
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), port)  # this machine only

    def test_prometheus_scrapes_every_service(self):
        targets = {t for job in yaml.safe_load(read("deploy/prometheus/compose.yml"))["scrape_configs"]
                   for s in job["static_configs"] for t in s["targets"]}
        self.assertEqual(targets, {"hypervisor:9464", "guest-strict:9465", "guest-lazy:9465"})
        self.assertLessEqual({t.split(":")[0] for t in targets}, set(self.load("compose.yaml")["services"]))


def raw_manifests():
    """Every manifest that is a resource of a kustomization, as written."""
    for path in sorted(glob.glob(f"{DEPLOY}/kubernetes/**/kustomization.yaml", recursive=True)):
        folder = os.path.dirname(path)
        for name in yaml.safe_load(read(path)).get("resources", []):
            file = os.path.join(folder, name)
            if os.path.isfile(file):
                for document in yaml.safe_load_all(read(file)):
                    yield os.path.relpath(file, ROOT), document


def render(folder):
    done = subprocess.run(["kubectl", "kustomize", os.path.join(DEPLOY, "kubernetes", folder)],
                          text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def kustomize_here():
    """Debian's kubernetes-client is too old for components; any kubectl since 1.21 will do."""
    if shutil.which("kubectl") is None:
        return False
    text = subprocess.run(["kubectl", "version", "--client"], text=True, capture_output=True,
                          check=False).stdout
    return "Kustomize Version" in text


class Kubernetes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.validators = {}
        for name in ("kubernetes", "prometheus-operator", "cert-manager"):
            document = schema(name)
            for kind, ref in document["definitions"]["Manifests"]["properties"].items():
                cls.validators[kind] = jsonschema.Draft7Validator(
                    {**ref, "definitions": document["definitions"]})

    def check(self, where, document):
        self.assertIn(document["kind"], self.validators, where)
        self.assertEqual(problems(self.validators[document["kind"]], document), [],
                         f"{where}: {document['kind']} {document['metadata']['name']}")

    def test_manifests_follow_the_published_schemas(self):
        kinds = set()
        for where, document in raw_manifests():
            self.check(where, document)
            kinds.add(document["kind"])
        self.assertGreaterEqual(kinds, {"Deployment", "Service", "Job", "NetworkPolicy", "Issuer",
                                        "ServiceMonitor", "PrometheusRule", "Certificate"})

    def test_the_schemas_find_mistakes(self):
        for where, document in raw_manifests():
            wrong = copy.deepcopy(document)
            wrong["spce"] = {}
            self.assertNotEqual(problems(self.validators[document["kind"]], wrong), [], where)
            if document["kind"] == "Deployment":
                wrong = copy.deepcopy(document)
                wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
                self.assertNotEqual(problems(self.validators["Deployment"], wrong), [], where)

    def test_the_rule_is_the_shipped_rule(self):
        rule = [d for _, d in raw_manifests() if d["kind"] == "PrometheusRule"]
        self.assertEqual(rule[0]["spec"], yaml.safe_load(read("deploy/prometheus/rules/viommu.yml")))

    @unittest.skipUnless(kustomize_here(), "no kubectl with kustomize 3 or later")
    def test_rendered(self):
        for folder in ("base", "overlays/full", "sweep"):
            documents = render(folder)
            for document in documents:
                self.check(folder, document)
            self.check_pods(folder, documents)
            if folder != "sweep":
                self.check_names(folder, documents)

    def check_pods(self, folder, documents):
        secrets = {d["spec"]["secretName"] for d in documents if d["kind"] == "Certificate"}
        secure = folder == "overlays/full"
        for workload in (d for d in documents if d["kind"] in ("Deployment", "Job")):
            pod = workload["spec"]["template"]["spec"]
            where = f"{folder}: {workload['metadata']['name']}"
            self.assertEqual((pod["securityContext"]["runAsNonRoot"],
                              pod["securityContext"]["seccompProfile"]["type"]),
                             (True, "RuntimeDefault"), where)
            volumes = {v["name"] for v in pod["volumes"]} if "volumes" in pod else set()
            for volume in pod.get("volumes", []):
                if "secret" in volume:
                    self.assertIn(volume["secret"]["secretName"], secrets, where)
            for container in pod["containers"] + pod.get("initContainers", []):
                self.check_container(where, container, volumes, secure)

    def check_container(self, where, container, volumes, secure):
        where = f"{where}/{container['name']}"
        program = re.search(r"/(\w+):latest$", container["image"]).group(1)
        self.assertIn(program, PROGRAMS)
        security = container["securityContext"]
        self.assertEqual((security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"],
                          security["capabilities"]["drop"]), (True, False, ["ALL"]), where)
        self.assertIn("memory", container["resources"]["limits"], where)
        for mount in container.get("volumeMounts", []):
            self.assertIn(mount["name"], volumes, where)
        if "command" in container:
            return
        arguments = container.get("args", [])
        flags = flags_of(program, *arguments[:1])
        named = {e["name"] for e in container["env"]} - HELPERS
        self.assertEqual({n.removeprefix("VIOMMU_").lower() for n in named} - flags, set(), where)
        for argument in arguments[1:]:
            self.assertIn(re.match(r"--(\w+)=", argument).group(1), flags, where)
        if program != "viommu" or arguments[:1] == ["load"]:
            values = {e["name"]: e.get("value") for e in container["env"]}
            self.assertEqual(values["VIOMMU_INSECURE"], "false" if secure else "true", where)
            self.assertEqual("VIOMMU_TLS_CERT" in values, secure, where)

    def check_names(self, folder, documents):
        """Services find pods and ports, monitors find services, clients name services."""
        pods = [(d["spec"]["template"]["metadata"]["labels"], d["spec"]["template"]["spec"])
                for d in documents if d["kind"] == "Deployment"]
        services = {d["metadata"]["name"]: d for d in documents if d["kind"] == "Service"}
        self.assertEqual(set(services), {"hypervisor", "guest-strict", "guest-lazy", "guest-remote"})
        for name, service in services.items():
            selected = [p for labels, p in pods
                        if service["spec"]["selector"].items() <= labels.items()]
            self.assertEqual(len(selected), 1, name)
            ports = {p["name"] for c in selected[0]["containers"] for p in c.get("ports", [])}
            for port in service["spec"]["ports"]:
                self.assertIn(port["targetPort"], ports, name)
        for _, pod in pods:
            for container in pod["containers"]:
                peers = [e["value"] for e in container["env"] if e["name"] == "VIOMMU_HYPERVISOR"]
                peers += [a.split("=")[1] for a in container.get("args", []) if "--guest=" in a]
                for host, port in (p.split(":") for p in peers):
                    if host != "127.0.0.1":
                        self.assertIn(int(port), [p["port"] for p in services[host]["spec"]["ports"]])
        monitored = set()
        for monitor in (d for d in documents if d["kind"] == "ServiceMonitor"):
            selector = monitor["spec"]["selector"]
            wanted = set(selector.get("matchLabels", {}).values()) | {
                v for e in selector.get("matchExpressions", []) for v in e["values"]}
            for name in wanted:
                ports = {p["name"] for p in services[name]["spec"]["ports"]}
                self.assertLessEqual({e["port"] for e in monitor["spec"]["endpoints"]}, ports)
            monitored |= wanted
        if folder == "overlays/full":
            self.assertEqual(monitored, set(services))
            names = {n for d in documents if d["kind"] == "Certificate"
                     for n in d["spec"].get("dnsNames", [])}
            self.assertLessEqual(set(services), names)
            shown = next(d for d in documents if d["kind"] == "ConfigMap")["data"]
            self.assertEqual(set(shown), {os.path.basename(p) for p in
                                          glob.glob(f"{DEPLOY}/grafana/dashboards/*.json")})


class Health(unittest.TestCase):
    """The probe that images and manifests call."""

    def test_serving_gone_and_wrong_use(self):
        with lab.Lab(BINARIES) as here:
            process, address, _ = here.hypervisor()
            done = here.viommu("health", f"--address={address}")
            self.assertEqual((done.returncode, done.stdout), (0, "SERVING\n"))
            _, guest, _ = here.guest("guest", address)
            self.assertEqual(here.viommu("health", f"--address={guest}").returncode, 0)
            process.terminate()
            process.wait(20)
            done = here.viommu("health", f"--address={address}")
            self.assertEqual(done.returncode, 1)
            self.assertIn("nobody listens", done.stderr)
        self.assertEqual(here.viommu("health").returncode, 2)


class Sweep(unittest.TestCase):
    """The Job's own command, shard by shard, and collect.sh on what the pods would print."""

    def test_shards_join_to_the_whole(self):
        job = next(d for _, d in raw_manifests() if d["kind"] == "Job")
        measure = job["spec"]["template"]["spec"]["initContainers"][0]
        shards = job["spec"]["completions"]
        values = {e["name"]: e.get("value") for e in measure["env"]}
        self.assertEqual((values["VIOMMU_SHARD"], values["SHARDS"]),
                         ("$(SHARD)/$(SHARDS)", str(shards)))
        # The same sweep with small live sets, so that a test run stays short.
        small = [a for a in measure["args"] if not a.startswith(("--live_pages", "--json"))]
        small += ["--live_pages=256,512", "--ops=40"]
        with lab.Lab(BINARIES) as here:
            whole = here.viommu(*small, f"--json={here.path('whole.json')}")
            self.assertEqual(whole.returncode, 0, whole.stderr)
            for shard in range(shards):
                part = here.viommu(*small, f"--shard={shard}/{shards}",
                                   f"--json={here.path(f'pod-{shard}.json')}")
                self.assertEqual(part.returncode, 0, part.stderr)
            # What collect.sh asks of a cluster, answered from the files above.
            with open(here.path("kubectl"), "w", encoding="utf-8") as f:
                f.write(f"""#!/bin/sh
case "$*" in
  *" wait "*) ;;
  *" get job "*) echo {shards} ;;
  *" get pods "*) echo "$*" | sed 's/.*completion-index=\\([0-9]*\\).*/pod-\\1/' ;;
  *" logs "*) cat {here.folder}/$4.json ;;
esac
""")
            os.chmod(here.path("kubectl"), 0o755)
            done = subprocess.run(
                [f"{DEPLOY}/kubernetes/sweep/collect.sh", here.path("all")], text=True,
                env={**os.environ, "PATH": f"{here.folder}:{BINARIES}:{os.environ['PATH']}"},
                capture_output=True, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            rows = {}
            for name in ("whole", "all"):
                with open(here.path(name + ".json"), encoding="utf-8") as f:
                    rows[name] = [{k: v for k, v in r.items() if not k.startswith("wall_")}
                                  for r in json.load(f)["rows"]]
            self.assertEqual(len(rows["whole"]), 4 * 3 * 2)
            self.assertEqual(rows["all"], rows["whole"])
            with open(here.path("all.html"), encoding="utf-8") as f:
                self.assertIn("<html", f.read(2000))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
