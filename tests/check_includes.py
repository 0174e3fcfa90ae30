#!/usr/bin/env python3
"""Checks who includes whom under src/ against the folder table of docs/architecture.md.

Usage: check_includes.py [ROOT]. Prints each forbidden edge as file:line and ends with 1 if there is one.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)')
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")


def read_table(page: pathlib.Path) -> dict[str, set[str]]:
    """Folder -> folders that it may include, itself among them."""
    text = page.read_text(encoding="utf-8")
    section = re.search(r"^## Folders$(.*?)(?=^## |\Z)", text, re.M | re.S)
    if not section:
        sys.exit(f"{page}: there is no section '## Folders'")
    allowed: dict[str, set[str]] = {}
    for line in section.group(1).splitlines():
        row = re.match(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", line)
        if not row:
            continue
        folder, rule = row.groups()
        may: set[str] = set()
        if rule.startswith("everything above"):
            may = set(allowed)
            rest = rule[len("everything above"):]
            excepted, _, added = rest.partition(", ")
            may -= set(re.findall(r"`(\w+)`", excepted))
            may |= set(re.findall(r"`(\w+)`", added))
        elif rule != "nothing":
            may = set(re.findall(r"`(\w+)`", rule))
            if not may:
                sys.exit(f"{page}: the rule of '{folder}' is not understood: {rule}")
        allowed[folder] = may | {folder}
    if not allowed:
        sys.exit(f"{page}: the folder table has no rows")
    return allowed


def check(root: pathlib.Path) -> list[str]:
    source = root / "src"
    allowed = read_table(root / "docs" / "architecture.md")
    faults = []
    folders = {path.name for path in source.iterdir() if path.is_dir()}
    for folder in sorted(folders - set(allowed)):
        faults.append(f"src/{folder}: the folder has no row in docs/architecture.md")
    for folder in sorted(set(allowed) - folders):
        faults.append(f"docs/architecture.md: the row '{folder}' has no folder under src/")
    for path in sorted(source.rglob("*")):
        if path.suffix not in (".h", ".cc", ".inc"):
            continue
        folder = path.relative_to(source).parts[0]
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            where = f"{path.relative_to(root)}:{number}"
            quoted, bracketed = match.groups()
            if bracketed:
                if TORCH.match(bracketed) and folder != "engine":
                    faults.append(f"{where}: includes <{bracketed}>; only src/engine may include torch")
                if bracketed.startswith("CLI/") and path.relative_to(source).as_posix() != "cli/command_line.cc":
                    faults.append(f"{where}: includes <{bracketed}>; only src/cli/command_line.cc may include CLI11")
                continue
            target = quoted.split("/")[0]
            if "/" not in quoted:
                faults.append(f'{where}: "{quoted}" is not relative to src/')
            elif target not in allowed and target != "proto":
                faults.append(f'{where}: "{quoted}" names no folder of the table')
            elif target not in allowed.get(folder, {target}):
                faults.append(f'{where}: src/{folder} may not include "{quoted}"')
    return faults


def main() -> int:
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    faults = check(root)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
