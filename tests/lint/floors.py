"""Checks the shape of the tree: who may include whom, folder READMEs, file sizes, names.

floors.py [ROOT] exits 1 and names every violation. floors.py --self-test proves that it can fail.
"""
import os
import re
import sys
import tempfile

# Lower number = lower floor. A file may include its own folder and lower floors; two folders of
# one floor don't see each other.
FLOORS = {
    "iommu_core/base": 0, "iommu_core/vtd": 1, "iommu_core/mem": 2, "iommu_core/pt": 3,
    "iommu_core/iova": 4, "iommu_core/iq": 4, "iommu_core/hw": 5, "iommu_core/shadow": 6,
    "iommu_core/dma": 6, "iommu_core/load": 7, "svc_common": 8, "guest_svc/client": 10,
    "guest_svc": 9, "hypervisor_svc": 9,
}
# The client starts the services and speaks to them; it links none of their code but the hand-over
# of memory, which lives in svc_common.
CORE_FORBIDDEN = re.compile(r'^(grpc|grpcpp|google/protobuf|prometheus|viommu/v1)/|\.pb\.h$')
TOP_LEVEL = {"proto", "guest_svc", "hypervisor_svc", "iommu_core", "deploy", "tests",
             "CMakeLists.txt", "README.md", "svc_common", "LICENSE", "CMakePresets.json"}
IGNORED_TOP = {"build", "viommu-report.html", "viommu-report.json"}
MAX_LINES = 600
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b|not implemented|unimplemented")
PROTO_FIELD = re.compile(r"^\s*(optional |repeated )?(map<[^>]*>|[\w.]+) \w+ = \d+\s*[;\[]")
# Beside sources, for unfinished work only.
SCRIPTS = (".py", ".sh", ".proto", ".txt", ".cmake", ".yml", ".textproto")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"|^\s*#\s*include\s+<([^>]+)>')


def folder_of(path):
    """The floor-folder of a path, or None."""
    best = None
    for folder in FLOORS:
        if path.startswith(folder + "/") and (best is None or len(folder) > len(best)):
            best = folder
    return best


def sources(root):
    for top in ("iommu_core", "svc_common", "guest_svc", "hypervisor_svc", "tests"):
        for where, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                if name.endswith((".h", ".cc")):
                    yield os.path.relpath(os.path.join(where, name), root)


def check_file(root, path):
    problems = []
    with open(os.path.join(root, path), encoding="utf-8") as f:
        lines = f.read().split("\n")
    if len(lines) > MAX_LINES:
        problems.append(f"{path}: {len(lines)} lines, at most {MAX_LINES}")
    mine = folder_of(path)
    for number, line in enumerate(lines, 1):
        if UNFINISHED.search(line):
            problems.append(f"{path}:{number}: unfinished: {line.strip()}")
        found = INCLUDE.match(line)
        if not found or mine is None:
            continue
        included = found.group(1) or found.group(2)
        if mine.startswith("iommu_core/") and CORE_FORBIDDEN.search(included):
            problems.append(f"{path}:{number}: the core knows no {included}")
        theirs = folder_of(included)
        if included.startswith("tests/"):
            problems.append(f"{path}:{number}: includes a test")
        if theirs is None or theirs == mine:
            continue
        if FLOORS[theirs] >= FLOORS[mine]:
            problems.append(f"{path}:{number}: floor {FLOORS[mine]} ({mine}) includes floor "
                            f"{FLOORS[theirs]} ({theirs})")
    if path.endswith(".h"):
        guard = "VIOMMU_" + re.sub(r"[/.]", "_", path).upper() + "_"
        if f"#ifndef {guard}" not in lines:
            problems.append(f"{path}: include guard is not {guard}")
    return problems


def check_protos(root):
    problems = []
    for where, _, names in os.walk(os.path.join(root, "proto", "viommu")):
        for name in sorted(names):
            if not name.endswith(".proto"):
                continue
            path = os.path.join(where, name)
            with open(path, encoding="utf-8") as f:
                lines = f.read().split("\n")
            for number, line in enumerate(lines, 1):
                if PROTO_FIELD.match(line):
                    above = lines[number - 2].strip().startswith("//")
                    if not above and not re.search(r";\s*//", line):
                        where_is = os.path.relpath(path, root)
                        problems.append(f"{where_is}:{number}: field has no comment")
    return problems


def check_scripts(root):
    problems = []
    for top in sorted(TOP_LEVEL):
        walk = os.walk(os.path.join(root, top)) if os.path.isdir(os.path.join(root, top)) else ()
        for where, _, names in walk:
            for name in sorted(names):
                path = os.path.relpath(os.path.join(where, name), root)
                if not name.endswith(SCRIPTS) or path == "tests/lint/floors.py":
                    continue
                with open(os.path.join(root, path), encoding="utf-8") as f:
                    for number, line in enumerate(f, 1):
                        if UNFINISHED.search(line):
                            problems.append(f"{path}:{number}: unfinished: {line.strip()}")
    return problems


def check(root):
    problems = check_scripts(root)
    seen_folders = set()
    for path in sources(root):
        problems += check_file(root, path)
        if not path.startswith("tests/"):
            seen_folders.add(os.path.dirname(path))
    for folder in sorted(seen_folders):
        if not os.path.exists(os.path.join(root, folder, "README.md")):
            problems.append(f"{folder}: has sources and no README.md")
    problems += check_protos(root)
    for name in sorted(os.listdir(root)):
        if name.startswith(".") or name in TOP_LEVEL or name in IGNORED_TOP:
            continue
        problems.append(f"{name}: stands at the top level")
    return problems


def problems_of(files):
    """What check() says of a tree made of `files`, a dictionary of path to text."""
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            full = os.path.join(root, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w", encoding="utf-8") as f:
                f.write(text)
        return check(root)


def self_test():
    guard = "#ifndef VIOMMU_IOMMU_CORE_VTD_A_H_\n"
    good = {
        "iommu_core/vtd/README.md": "x",
        "iommu_core/vtd/a.h": guard + '#include "iommu_core/base/types.h"\n#include <vector>\n',
        "proto/viommu/v1/b.proto": "message B {\n  // What it is.\n  uint32 b = 1;\n"
                                   "  repeated fixed64 c = 2 [packed = true];  // And this.\n}\n",
        "CMakeLists.txt": "",
    }
    assert problems_of(good) == [], problems_of(good)
    readme = {"iommu_core/dma/README.md": "x", "guest_svc/README.md": "x"}
    bad = [
        ({"iommu_core/vtd/a.h": guard + '#include "iommu_core/pt/walker.h"\n'}, "floor 1"),
        ({"iommu_core/dma/a.cc": '#include "iommu_core/shadow/session.h"\n', **readme}, "floor 6"),
        ({"guest_svc/a.cc": '#include "hypervisor_svc/options.h"\n', **readme}, "floor 9"),
        ({"iommu_core/vtd/a.h": guard + '#include "tests/fakes/sink.h"\n'}, "includes a test"),
        ({"iommu_core/vtd/a.h": guard + "#include <grpcpp/grpcpp.h>\n"}, "the core knows no"),
        ({"iommu_core/vtd/a.h": guard + "#include <google/protobuf/message.h>\n"},
         "the core knows no"),
        ({"iommu_core/vtd/a.h": guard + "#include <prometheus/counter.h>\n"}, "the core knows no"),
        ({"iommu_core/vtd/a.h": guard + '#include "viommu/v1/types.pb.h"\n'}, "the core knows no"),
        ({"iommu_core/vtd/a.h": "int x;\n"}, "include guard"),
        ({"iommu_core/vtd/a.h": guard + "// TO" + "DO: later\n"}, "unfinished"),
        ({"deploy/a.sh": "# FIX" + "ME\n"}, "unfinished"),
        ({"iommu_core/vtd/a.h": guard + "\n" * 700}, "lines, at most"),
        ({"iommu_core/pt/b.cc": "\n"}, "no README"),
        ({"docs/x.md": ""}, "top level"),
        ({"proto/viommu/v1/a.proto": "message A {\n  uint32 b = 1;\n}\n"}, "no comment"),
        ({"proto/viommu/v1/a.proto": "message A {\n  map<string, uint32> b = 1;\n}\n"},
         "no comment"),
        ({"proto/viommu/v1/a.proto": "message A {\n  repeated fixed64 b = 1 [packed = true];\n}\n"},
         "no comment"),
    ]
    for extra, expected in bad:
        problems = problems_of({**good, **extra})
        assert any(expected in p for p in problems), (extra, problems)
    print("self-test: every kind of violation is found")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        sys.exit(0)
    found = check(sys.argv[1] if len(sys.argv) > 1 else ".")
    print("\n".join(found) if found else "floors: clean")
    sys.exit(1 if found else 0)
