"""Names from debug files that a server has: elfutils' own, and servers that fail."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from servers import closed_port, http_server, wire
from test_errors import Outcome, run
from test_real import child, program
from test_report import Page

# Without RTTI: only symbols have the names of its classes.
PROGRAM = """
#include <cstdio>
#include <vector>
namespace shop {
struct Item { virtual ~Item() {} virtual int price() { return 1; } };
template <class T> struct Box : Item { T held[3] = {}; int price() override { return 2; } };
struct Lost : Item { int price() override { return 3; } };
}
int main() {
    std::vector<shop::Item *> items;
    for (int n = 0; n < 1000; n++) items.push_back(new shop::Box<int>);
    int sum = 0;
    for (int n = 0; n < 10; n++) sum += (new shop::Lost)->price();
    for (auto *item : items) sum += item->price();
    puts("ready");
    fflush(stdout);
    return getchar() + sum;
}
"""
TYPE, LOST, METHOD = "shop::Box<int>", "shop::Lost", "shop::Box<int>::price()"


class Split(NamedTuple):
    """A program without symbols, what was split off, and where that has METHOD."""

    program: Path
    debug: Path
    build_id: str
    method: int


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("split")
    source, app, debug = folder / "app.cpp", folder / "app", folder / "debug" / "app.debug"
    source.write_text(PROGRAM)
    debug.parent.mkdir()
    flags = ["-O0", "-g", "-fno-rtti", "-pie", "-Wl,--build-id"]
    subprocess.run([program("g++"), *flags, source, "-o", app], check=True)
    lines = subprocess.check_output(["nm", "-C", app], text=True).splitlines()
    method = next(int(line[:16], 16) for line in lines if line.endswith(METHOD))
    subprocess.run(["objcopy", "--only-keep-debug", app, debug], check=True)
    subprocess.run(["objcopy", "--strip-all", app], check=True)
    notes = subprocess.check_output(["readelf", "-n", app], text=True)
    build_id = notes.partition("Build ID: ")[2].split()[0]
    return Split(app, debug, build_id, method)


@pytest.fixture
def running(split: Split) -> Iterator[int]:
    with child(split.program, ready=b"ready") as process:
        yield process.pid


def environment(folder: Path, url: str) -> dict[str, str]:
    """One in which that server is asked, by way of a cache of its own."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("DEBUGINFOD")},
        "DEBUGINFOD_URLS": url,
        "DEBUGINFOD_CACHE_PATH": str(folder / "cache"),
        "no_proxy": "*",
    }


def metrics(url: str) -> bytes:
    """What elfutils' server tells of itself; nothing before it listens."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), opener.open(f"{url}/metrics") as answer:
        found: bytes = answer.read()
        return found
    return b""


@pytest.fixture(scope="module")
def asked(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which elfutils' server is asked, which has the debug file."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program("debuginfod"), "-d", ":memory:", "-p", str(port), "-F"]
    command.append(str(split.debug.parent))
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            while b'found_debuginfo_total{source="files"} 1' not in metrics(url):
                assert server.poll() is None, "it ended"
                time.sleep(0.01)
            yield environment(tmp_path_factory.mktemp("asked"), url)
        finally:
            server.kill()


def types(source: object, env: Mapping[str, str], *options: str) -> dict[str, int]:
    """The classes that ``why`` names, and how many objects they have."""
    told = run("why", source, "--json", "--no-strings", *options, env=env)
    assert (told.code, told.err) == (0, "")
    found = json.loads(told.out)["types"]
    return {each["name"]: each["objects"] for each in found if each["language"] == "C++"}


def test_why_names_the_types_of_a_stripped_program(running: int, asked: dict[str, str]) -> None:
    assert types(running, asked) == {}
    found = types(running, asked, "--debuginfod")
    assert (found[TYPE], found[LOST]) == (1000, 10)


def test_leaks_names_them_too(running: int, asked: dict[str, str]) -> None:
    def leaked(*options: str) -> set[str]:
        told = run("leaks", running, "--json", "--pause", "freeze", *options, env=asked)
        found = json.loads(told.out)
        assert found["exact"], found["problems"]
        return {row["type"] for row in found["leaks"]}

    assert LOST not in leaked()
    assert LOST in leaked("--debuginfod")


def test_report_names_them_too(running: int, asked: dict[str, str], in_tmp: Path) -> None:
    def named(*options: str) -> set[str]:
        done = run("report", running, "--force", *options, env=asked)
        assert (done.code, done.err) == (0, "")
        return {each["name"] for each in Page(Path("report.html").read_text()).data["types"]}

    assert TYPE not in named()
    assert TYPE in named("--debuginfod")


def test_diff_names_them_too(running: int, asked: dict[str, str], in_tmp: Path) -> None:
    before = run("why", running, "--save", "page", "--no-strings", "--debuginfod", env=asked)
    assert before.code == 0
    gone = run("diff", "page", running, "--json", env=asked)
    assert f"C++ {TYPE}" in {each["name"] for each in json.loads(gone.out)}
    same = run("diff", "page", running, "--json", "--debuginfod", env=asked)
    assert f"C++ {TYPE}" not in {each["name"] for each in json.loads(same.out)}


def test_hexdump_names_what_words_point_to(
    split: Split, running: int, asked: dict[str, str]
) -> None:
    def shown(*options: str) -> set[str]:
        told = run("hexdump", running, "app", "--follow-pointers", *options, env=asked)
        return set(re.findall(r"  [0-9a-f]+: (.+?)(?=  |$)", told.out, re.MULTILINE))

    plain, named = shown(), shown("--debuginfod")
    offset, name = f"app+{split.method:#x}", f"app:{METHOD}"
    assert offset in plain - named
    assert name in named - plain


def test_a_dump_is_named_where_its_files_are_not(
    split: Split, asked: dict[str, str], in_tmp: Path
) -> None:
    """On another host: the dump itself has the build ids."""
    app = shutil.copy(split.program, "app")
    with child(f"./{app}", ready=b"ready") as process:
        assert run("dump", process.pid, "-q", "-o", "core.lz4").code == 0
    Path(app).unlink()
    assert types("core.lz4", asked) == {}
    assert types("core.lz4", asked, "--debuginfod")[TYPE] == 1000
    Path(app).write_bytes(Path(sys.executable).read_bytes())  # another build
    assert types("core.lz4", asked, "--debuginfod")[TYPE] == 1000


def test_no_server_is_asked_without_the_option(running: int, in_tmp: Path) -> None:
    commands = (
        ("why", running),
        ("leaks", running, "--pause", "freeze"),
        ("report", running),
        ("diff", running, running),
        ("hexdump", running, "app", "--follow-pointers"),
    )
    with http_server(in_tmp) as port, wire(port) as counted:
        env = environment(in_tmp, f"http://127.0.0.1:{counted.port}")
        for command in commands:
            assert "Traceback" not in run(*command, env=env).err
        assert counted.up == 0
        for command in commands:
            before = counted.up
            env["DEBUGINFOD_CACHE_PATH"] = str(in_tmp / command[0])
            run(*command, "--debuginfod", *["--force"] * (command[0] == "report"), env=env)
            assert counted.up > before, command


def fails(running: int, env: Mapping[str, str], reason: str) -> Outcome:
    """A page without names, but for the reason as any other; returned is the run."""
    told = run("why", running, "--no-strings", "--debuginfod", env=env)
    assert (told.code, told.err) == (0, "")
    (problem,) = (
        line for line in told.out.splitlines() if "not sure: no debug file of app" in line
    )
    assert problem.endswith(f": {reason}")
    assert "live heap chunks" in told.out
    assert TYPE not in told.out
    return told


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("nothing", "no server has it"),
        ("garbage", "what came is not its debug file"),
        ("another", "what came is not its debug file"),
        ("cut", "what came is not its debug file"),
        ("stripped", "what came has no symbols"),
    ],
)
def test_what_a_server_sends_is_not_believed(
    split: Split, running: int, tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "buildid" / split.build_id / "debuginfo"
    path.parent.mkdir(parents=True)
    whole = split.debug.read_bytes()
    other = bytes.fromhex(split.build_id)
    if content != "nothing":
        path.write_bytes(
            {
                "garbage": b"<html>" * 1000,
                "another": whole.replace(other, bytes(len(other))),
                "cut": whole[: len(whole) // 2],
                "stripped": split.program.read_bytes(),
            }[content]
        )
    with http_server(tmp_path) as port:
        fails(running, environment(tmp_path, f"http://127.0.0.1:{port}"), reason)


def test_without_a_server_or_the_tool_the_page_goes_on(running: int, tmp_path: Path) -> None:
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}"
        fails(running, environment(tmp_path, url), "Connection refused")
    fails(running, environment(tmp_path, ""), "DEBUGINFOD_URLS names no server")
    env = {**environment(tmp_path, url), "PATH": ""}
    fails(running, env, "debuginfod-find (elfutils) is not installed")


def test_a_server_that_fails_is_asked_once(running: int, tmp_path: Path) -> None:
    """And not again for each module, which may take a timeout each."""
    find = tmp_path / "debuginfod-find"
    find.write_text(
        f"#!/bin/sh\necho >>{tmp_path}/calls\necho Server query failed: Timeout >&2\nexit 1\n"
    )
    find.chmod(0o755)
    env = {**environment(tmp_path, ""), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told = fails(running, env, "Timeout")
    assert "libstdc++" in told.out.partition("not sure: no debug file of app, ")[2].splitlines()[0]
    assert (tmp_path / "calls").read_text() == "\n"


def test_hexdump_complains_beside_its_lines(running: int, tmp_path: Path) -> None:
    told = run(
        "hexdump", running, "app", "--follow-pointers", "--debuginfod",
        env=environment(tmp_path, ""),
    )  # fmt: skip
    assert told.code == 0
    assert told.err.startswith("fastdump: no debug file of ")
    alone = run("hexdump", running, "app", "--debuginfod")
    assert alone.code == 2
    assert "--follow-pointers" in alone.err
