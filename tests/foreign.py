"""What other releases of Debian have: another glibc, another Python.

Packages are fetched by apt, from where this machine has its own, and unpacked beside the targets;
nothing is installed. Programs are started by naming the loader that belongs to their libc.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import targets

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
C_PACKAGES = ("libc6", "libc6-dev", "linux-libc-dev")


def root_of(release: str, packages: tuple[str, ...]) -> Path:
    """A folder that they are unpacked in. Safe in parallel runs."""
    root = targets.BUILD / release
    root.mkdir(parents=True, exist_ok=True)
    with (targets.BUILD / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lacking = [name for name in packages if not (root / f"{name}.unpacked").exists()]
        if lacking:
            _fetch(release, lacking, root)
    return root


def _fetch(release: str, packages: list[str], root: Path) -> None:
    site = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Label: Debian"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()[0]
    apt = root / "apt"
    (apt / "lists/partial").mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {site} {release} main\n")
    (apt / "status").touch()  # or what is installed here would be newer than an old release
    options = [
        f"-oDir::Etc::SourceList={apt / 'sources.list'}",
        "-oDir::Etc::SourceParts=-",
        f"-oDir::State::Lists={apt / 'lists'}",
        f"-oDir::State::Status={apt / 'status'}",
        f"-oDir::Cache={apt}",
        "-oAPT::Sandbox::User=root",
    ]
    subprocess.run(["apt-get", "-q", *options, "update"], check=True)
    subprocess.run(["apt-get", "-q", *options, "download", *packages], check=True, cwd=apt)
    for name in packages:
        (package,) = apt.glob(f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        (root / f"{name}.unpacked").touch()
    for name in ("lib", "lib64"):  # since Debian 12 in /usr, as base-files links them
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for link in root.rglob("*"):
        if link.is_symlink() and os.path.isabs(found := os.readlink(link)):
            link.unlink()
            link.symlink_to(os.path.relpath(root / found[1:], link.parent))


def _libraries(root: Path) -> Path:
    return root / "lib/x86_64-linux-gnu"


def loader(root: Path) -> list[str]:
    """What a command begins with, to run a program with the libraries in *root*."""
    libraries = _libraries(root)
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]


def python(release: str, version: str) -> str:
    """A program that becomes that Python."""
    name = f"python{version}"
    own = (f"{name}-minimal", f"lib{name}-minimal", f"lib{name}-stdlib")
    root = root_of(release, ("libc6", *own, "libexpat1", "libffi8", "zlib1g"))
    script = root / "python"
    words = (f"PYTHONHOME={root}/usr exec", *loader(root), f"{root}/usr/bin/{name}", '"$@"')
    script.write_text(f"#!/bin/sh\n{' '.join(words)}\n")
    script.chmod(0o755)
    return str(script)


def built(name: str, root: Path) -> Path:
    """A target, for the libc in *root*."""
    output = root / name
    compiler = ["gcc", f"--sysroot={root}", f"-B{root}/usr/lib/x86_64-linux-gnu"]
    command = [*compiler, *targets.FLAGS, "-std=gnu11", targets.HERE / f"{name}.c", "-o", output]
    subprocess.run([*command, "-ldl"], check=True)
    return output
