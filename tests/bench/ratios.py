#!/usr/bin/env python3
"""Prints what each hot path costs beside its floor, from the JSON that benchmarks of one run left.

usage: ratios.py [--rows=FILE] [--build=DIR] DIR | ratios.py --self-test

DIR holds PROGRAM.json of each benchmark program; FILE is ratios.txt beside this script unless
given. Figures are the medians over the repetitions of the run. Exit status 0 unless something is
malformed: whether targets are met is printed, not enforced, since it depends on the machine.
"""

import argparse
import json
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

UNIT_NS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}


def load(directory):
    """{program: {benchmark: entry}}, medians where the run was repeated."""
    programs = {}
    for path in sorted(directory.glob("*_bench.json")):
        text = path.read_text()
        entries = {}
        for entry in json.loads(text)["benchmarks"] if text.strip() else []:
            if entry.get("run_type") == "aggregate":
                if entry["aggregate_name"] == "median":
                    entries[entry["run_name"]] = entry
            else:
                entries.setdefault(entry["run_name"], entry)
        programs[path.stem] = entries
    return programs


def value(programs, spec):
    """(figure, unit) of PROGRAM:BENCHMARK[@FIELD], unit "ns" or ""; None: it was not run."""
    name, _, field = spec.partition("@")
    program, _, benchmark = name.partition(":")
    entry = programs.get(program, {}).get(benchmark)
    if entry is None:
        return None
    field = field or "cpu_time"
    if field in ("cpu_time", "real_time"):
        return entry[field] * UNIT_NS[entry["time_unit"]], "ns"
    if field not in entry:
        sys.exit(f"{spec}: the benchmark has no such counter")
    return (entry[field] * 1e9, "ns") if field.startswith("per_") else (entry[field], "")


def show(figure):
    """A figure with its unit, three digits."""
    if figure is None:
        return "not run"
    number, unit = figure
    if unit == "ns":
        for name in ("s", "ms", "us"):
            if number >= UNIT_NS[name]:
                return f"{number / UNIT_NS[name]:.3g} {name}"
        return f"{number:.3g} ns"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def judge(measured, floor, target):
    """(ratio or "", "yes"/"no"/""), by the target's text."""
    ratio = None
    if measured and floor:
        ratio = measured[0] / floor[0]
    shown = "" if ratio is None else f"{ratio:.3g}"
    if target == "-" or measured is None:
        return shown, ""
    match = re.fullmatch(r"(<=|>=) ([0-9.]+) ?(x|1/x|ns|us|ms)?", target)
    if match is None:
        sys.exit(f"target `{target}` is not understood")
    bound, unit = float(match[2]), match[3]
    if unit in ("x", "1/x"):
        if ratio is None:
            return "", ""
        got = ratio if unit == "x" else 1 / ratio
        shown = f"{got:.3g}"
    else:
        got = measured[0] / UNIT_NS.get(unit, 1.0)
    met = got <= bound if match[1] == "<=" else got >= bound
    return shown, "yes" if met else "no"


def machine(build):
    """Lines that say what the figures were taken on."""
    cpu = "unknown"
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
        count = len(re.findall(r"^processor", pathlib.Path("/proc/cpuinfo").read_text(), re.M))
    except OSError:
        count = 0
    compiler = "unknown"
    cache = build / "CMakeCache.txt"
    flags = ""
    if cache.exists():
        text = cache.read_text()
        path = re.search(r"^CMAKE_CXX_COMPILER:[A-Z]+=(.*)$", text, re.M)
        found = re.search(r"^CMAKE_CXX_FLAGS_RELEASE:[A-Z]+=(.*)$", text, re.M)
        flags = found[1] if found else ""
        if path:
            out = subprocess.run([path[1], "--version"], capture_output=True, text=True, check=False)
            compiler = out.stdout.splitlines()[0] if out.stdout else path[1]
    return [
        f"Machine: {cpu}, {count} CPUs",
        f"Kernel: {platform.system()} {platform.release()}",
        f"Compiler: {compiler}, {flags}",
    ]


def self_test():
    """Each kind of target, met and missed, from figures that are known."""
    median = {"run_type": "aggregate", "aggregate_name": "median", "run_name": "A", "time_unit": "us",
              "cpu_time": 2.0, "real_time": 3.0, "per_page": 4e-9, "rate": 50.0}
    mean = dict(median, aggregate_name="mean", cpu_time=99.0)
    once = {"run_name": "B", "time_unit": "ns", "cpu_time": 1000.0, "rate": 100.0}
    with tempfile.TemporaryDirectory() as directory:
        text = json.dumps({"benchmarks": [median, mean, once]})
        pathlib.Path(directory, "x_bench.json").write_text(text)
        pathlib.Path(directory, "y_bench.json").write_text("")  # a filter left nothing to run
        programs = load(pathlib.Path(directory))
    a, b = value(programs, "x_bench:A"), value(programs, "x_bench:B")
    per_page, rate = value(programs, "x_bench:A@per_page"), value(programs, "x_bench:A@rate")
    assert (a, b) == ((2000.0, "ns"), (1000.0, "ns")), (a, b)
    assert value(programs, "x_bench:A@real_time") == (3000.0, "ns")
    assert value(programs, "y_bench:A") is None and value(programs, "x_bench:C") is None
    assert [show(f) for f in (a, per_page, rate, None)] == ["2 us", "4 ns", "50", "not run"]
    assert judge(a, b, "<= 2 x") == ("2", "yes") and judge(a, b, "<= 1.9 x") == ("2", "no")
    assert judge(a, b, ">= 0.4 1/x") == ("0.5", "yes") and judge(a, b, ">= 3 x") == ("2", "no")
    assert judge(per_page, None, "<= 4.1 ns") == ("", "yes")
    assert judge(rate, None, "<= 49") == ("", "no") and judge(rate, None, "-") == ("", "")
    assert judge(None, b, "<= 2 x") == ("", "") and judge(a, None, "<= 2 x") == ("", "")


def main():
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        return
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--rows", type=pathlib.Path, default=here / "ratios.txt")
    parser.add_argument("--build", type=pathlib.Path, default=here.parents[1] / "build" / "release")
    args = parser.parse_args()
    programs = load(args.directory)
    table = [("path", "measured", "floor", "ratio", "target", "met?")]
    for number, line in enumerate(args.rows.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split(" | ")]
        if len(cells) != 4:
            sys.exit(f"{args.rows}:{number}: a row has four cells: path | measured | floor | target")
        path, measured_spec, floor_spec, target = cells
        measured = value(programs, measured_spec)
        floor = None if floor_spec == "-" else value(programs, floor_spec)
        ratio, met = judge(measured, floor, target)
        floor_text = "" if floor_spec == "-" else show(floor)
        table.append((path, show(measured), floor_text, ratio, target, met))
    print("\n".join(machine(args.build)))
    print("Medians over the repetitions of one run\n")
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for i, row in enumerate(table):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


if __name__ == "__main__":
    main()
