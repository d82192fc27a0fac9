"""Real service processes and a real Prometheus for the tests here: private folder, ports that the
kernel picks, everything ended with the test."""
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

START_SECONDS = 60  # a loaded machine


def end_with_parent():
    """In a child, before exec: it dies with the test, however that dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def skip(reason):
    """Ends the program as ctest's SKIP_RETURN_CODE wants it."""
    print(f"SKIPPED: {reason}")
    sys.exit(77)


def http(url):
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read().decode()


class Lab:
    """A folder with processes. Use as a context manager."""

    def __init__(self, binaries):
        self.binaries = binaries
        self.folder = tempfile.mkdtemp(prefix="viommu-lab.")
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def spawn(self, name, args, **kwargs):
        log = open(self.path(name + ".log"), "w", encoding="utf-8")
        process = subprocess.Popen(args, stderr=log, preexec_fn=end_with_parent, **kwargs)
        log.close()
        self.processes.append(process)
        return process

    def log(self, name):
        with open(self.path(name + ".log"), encoding="utf-8") as f:
            return f.read()

    def service(self, name, binary, *flags):
        """Starts a service; returns (process, gRPC address, metrics address)."""
        process = self.spawn(name, [os.path.join(self.binaries, binary), *flags],
                             stdout=subprocess.PIPE, text=True)
        ready = process.stdout.readline()
        found = re.match(r"READY grpc=(\S+) metrics=(\S+)", ready)
        if not found:
            raise AssertionError(f"{name} is not ready: {ready!r} {self.log(name)}")
        return process, found.group(1), found.group(2)

    def hypervisor(self, name="hypervisor", *flags):
        return self.service(name, "hypervisor_svc", f"--listen=unix:{self.path(name)}", *flags)

    def guest(self, name, hypervisor, *flags):
        return self.service(name, "guest_svc", f"--listen=unix:{self.path(name)}",
                            f"--hypervisor={hypervisor}", *flags)

    def viommu(self, *args, timeout=120):
        """A finished `viommu` command."""
        return subprocess.run([os.path.join(self.binaries, "viommu"), *args], timeout=timeout,
                              capture_output=True, text=True, check=False)

    def prometheus(self, rules, jobs):
        """Starts Prometheus on `rules` and {job: [address]}; returns its URL once it is ready."""
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                  "rule_files": [rules],
                  "scrape_configs": [{"job_name": job, "static_configs": [{"targets": targets}]}
                                     for job, targets in jobs.items()]}
        with open(self.path("prometheus.yml"), "w", encoding="utf-8") as f:
            json.dump(config, f)  # JSON is YAML
        self.spawn("prometheus", ["prometheus", f"--config.file={self.path('prometheus.yml')}",
                                  f"--storage.tsdb.path={self.path('tsdb')}",
                                  "--web.listen-address=127.0.0.1:0"])
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = re.search(r'msg="Listening on" address=(\S+)', self.log("prometheus"))
            if found:
                url = f"http://{found.group(1)}"
                try:
                    http(f"{url}/-/ready")
                    return url
                except OSError:
                    pass
            time.sleep(0.1)
        raise AssertionError(f"Prometheus is not ready: {self.log('prometheus')}")


def query(url, expr):
    """The result vector of a PromQL query; an error of the query is an exception."""
    answer = json.loads(http(f"{url}/api/v1/query?query={urllib.parse.quote(expr)}"))
    assert answer["status"] == "success", answer
    return answer["data"]["result"]
