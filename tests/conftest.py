"""Fixtures that many tests share."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import targets

MANY = 70_000
MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")

# A deadline is a clock, and the machine may be busy.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """The long tests have another seed each time; workers of pytest-xdist have it from here."""
    if "not long" not in config.option.markexpr:
        os.environ.setdefault("FASTDUMP_TEST_SEED", str(random.SystemRandom().getrandbits(31)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup``, one worker has all of a file, whose fixtures are shared.

    And one has all that need many mappings, or one would lower the limit while another maps.
    """
    for item in items:
        group = item.path.name
        if "many_maps" in getattr(item, "fixturenames", ()):
            group = "many_maps"
        item.add_marker(pytest.mark.xdist_group(group))


def program(name: str) -> str:
    """The path of a program that CI must have."""
    path = shutil.which(name)
    if path:
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed")
    pytest.skip(f"{name} is not installed")


@pytest.fixture(autouse=True)
def _no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[targets.Target]:
    """The target with every awkward layout; tests that share it only read it."""
    with targets.start("awkward", tmp_path_factory.mktemp("awkward")) as target:
        yield target


@pytest.fixture(scope="module")
def many_maps() -> Iterator[targets.Target]:
    """More mappings than an ELF header can count; it is stopped."""
    before = MAX_MAP_COUNT.read_text()
    try:
        MAX_MAP_COUNT.write_text(str(max(int(before), 2 * MANY)))
    except OSError as error:
        pytest.skip(f"cannot raise vm.max_map_count: {error.strerror}")
    try:
        with targets.start("many_maps", MANY) as target:
            target.stop()
            yield target
    finally:
        MAX_MAP_COUNT.write_text(before)


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of its own as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_report_header() -> str:
    seed = os.environ.get("FASTDUMP_TEST_SEED", "as in each file")
    return f"kernel {os.uname().release}, {os.cpu_count()} CPUs, user {os.geteuid()}, seed {seed}"
