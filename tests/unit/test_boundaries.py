"""Which room may import which, and where ray, vllm and megatron may be named."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rl"

GROUND = {"types", "batches", "errors", "interfaces", "thoughts"}
SOURCES = {"algorithms", "chat", "data", "rewards", "tools"}
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "batches": {"types"},
    "interfaces": {"types", "batches"},
    "thoughts": {"types"},
    "config": GROUND,
    "project": GROUND | {"rewards"},
    "algorithms": GROUND | {"config"},
    "chat": GROUND | {"config"},
    "data": GROUND | {"config", "chat"},
    "batch": GROUND | {"config", "algorithms"},
    "rewards": GROUND | {"config"},
    "tools": GROUND | {"config"},
    "services": GROUND | {"config"},
    "observability": GROUND | {"config", "services"},
}
MAY_IMPORT["migrate"] = GROUND | {"config", "algorithms", "chat", "tools", "rewards"}
MAY_IMPORT["rollout"] = GROUND | SOURCES | {"batch", "config", "observability"}
MAY_IMPORT["weight_sync"] = MAY_IMPORT["rollout"] | {"rollout"}
MAY_IMPORT["training"] = MAY_IMPORT["rollout"] | {"rollout", "weight_sync"}
MAY_IMPORT["inference"] = MAY_IMPORT["rollout"] | {"rollout", "weight_sync"}
MAY_IMPORT["serving"] = MAY_IMPORT["rollout"] | {"rollout", "services"}
MAY_IMPORT["integrations"] = MAY_IMPORT["rollout"] | {"rollout", "serving"}
MAY_IMPORT["run"] = MAY_IMPORT["training"] | {"training"}
MAY_IMPORT["cluster"] = MAY_IMPORT["training"] | {"training", "inference", "services", "serving"}
MAY_IMPORT["remote"] = MAY_IMPORT["run"] | {"cluster"}
TOP = {
    "train",
    "sft",
    "evaluate",
    "serve",
    "play",
    "rollout_only",
    "preflight",
    "score",
    "doctor",
    "__main__",
    "__init__",
}

HOMES = {"ray": {"cluster"}, "megatron": {"training"}, "vllm": {"inference"}}
NOT_ON_THE_PAGE = {"ray", "megatron", "vllm", "torch"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Full names of all modules a file imports, inside functions and `TYPE_CHECKING` blocks too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            names.update(str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant))
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_rooms_before_its_own(path: Path) -> None:
    room = room_of(path)
    if room in TOP:
        return
    assert room in MAY_IMPORT, f"{room}: a new room; say in this test what it may import"
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("rl.")} - {"__version__"}
    assert used <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_names_ray_vllm_and_megatron_only_in_their_room(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports_of(path)}
    for library, homes in HOMES.items():
        assert library not in libraries or room_of(path) in homes, f"{library} belongs to {homes}"


@pytest.mark.parametrize("name", ["train.py", "sft.py", "evaluate.py", "rollout_only.py"])
def test_page_names_no_library_of_the_machinery(name: str) -> None:
    libraries = {imported.split(".")[0] for imported in imports_of(PACKAGE / name)}
    assert not libraries & NOT_ON_THE_PAGE


def test_light_rooms_import_without_ray_vllm_and_megatron() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ("config", "algorithms", "tools", "rewards")
        for path in sorted((PACKAGE / room).rglob("*.py"))
    ]
    script = (
        "import importlib, sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'vllm', 'megatron'):\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
