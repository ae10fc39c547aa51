"""A sandbox to attack, and parts of the host that programs must not reach."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from rl.services.embedded import EmbeddedSandbox

MARK = "turnwise_attack"
NUM_PROCESSES = 2 + 2 * (2 + 2)
"""Processes of an idle sandbox: two interpreters, each with two workers that have a program forked in advance."""
_ENVIRONMENT_MARK = "turnwise_environment_of_the_server"


@dataclass(slots=True)
class Server:
    """A sandbox of another user, or one that lacks layers."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=40) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


@dataclass(slots=True)
class Host:
    """The machine around the sandbox."""

    sandbox: EmbeddedSandbox | Server
    folder: Path
    """Accessible to all users."""
    precious: Path
    """Accessible to all users; must not change."""
    victim: subprocess.Popen[bytes]
    sockets: list[socket.socket] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    """The parameters of the attacks."""

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request; returns the HTTP status and the decoded answer."""
        url = f"http://127.0.0.1:{self.sandbox.port}{path}"
        headers = {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=40) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def post(self, code: str, **fields: Any) -> tuple[int, Any]:
        """Run a program with small limits."""
        body = {"code": code, "language": "python", "run_timeout": 10, "memory_limit_MB": 128, **fields}
        return self.request("POST", "/run_code", body)

    def run_program(self, path: Path) -> None:
        """Run an attack, and check how it ended."""
        code = path.read_text()
        first = code.partition("\n")[0].removeprefix("//").removeprefix("#")
        ending = first.removeprefix(" ends: ") if first.startswith(" ends: ") else "tried"
        helper = base64.b64encode((path.parent / "attack.py").read_bytes()).decode()
        status, answer = self.post(
            code,
            language={".sh": "bash", ".js": "nodejs"}.get(path.suffix, "python"),
            stdin=json.dumps(self.given),
            files={"attack.py": helper} if "from attack import" in code else {},
            fetch_files=["file", "fetched/file"],
            run_timeout=1.5 if ending == "time limit" else 3 if ending == "any" else 20,
        )
        assert (status, answer.get("files")) == (200, {}), answer
        run = answer["run_result"]
        assert "ESCAPED" not in run["stdout"], run["stdout"]
        if ending == "tried":
            assert "tried" in run["stdout"], run
        elif ending == "time limit":
            assert (run["status"], run["return_code"]) == ("TimeLimitExceeded", None), run
        elif ending == "killed":
            assert (run["status"], run["return_code"]) == ("Finished", -9), run
            assert "together used more memory than allowed" in run["stderr"]

    def check_precious(self) -> None:
        """Check that the host is unchanged."""
        assert [path.name for path in self.precious.iterdir()] == ["file"]
        assert (self.precious / "file").read_text() == "precious"

    def processes(self) -> list[psutil.Process]:
        """Running processes of the sandbox."""
        family = psutil.Process(self.sandbox.pid).children(recursive=True)
        return [process for process in family if process.status() != psutil.STATUS_ZOMBIE]

    def namespaces(self) -> set[str]:
        """Namespaces of the sandbox's processes."""
        found = set()
        for process in self.processes():
            for name in ("mnt", "pid", "net", "ipc", "user", "uts"):
                try:
                    found.add(os.readlink(f"/proc/{process.pid}/ns/{name}"))
                except OSError:
                    continue
        return found

    def marked_files(self) -> list[str]:
        """Files of an attack in folders that all users may write to, or in the sandbox's folders."""
        folders = [self.folder, *map(Path, ("/", "/tmp", "/dev/shm", "/var/tmp", "/etc", "/usr", sys.prefix))]
        found = [str(path) for folder in folders for path in folder.glob(f"{MARK}*")]
        for root in Path(tempfile.gettempdir()).glob("turnwise-sandbox-*"):
            found += [str(path) for path in root.rglob(f"{MARK}*")]
        return found


@contextlib.contextmanager
def start_server(user: str, refused: list[str], preload: list[str] | None = None) -> Iterator[Server]:
    """Start a sandbox on a machine that refuses these layers. A connection waits until it accepts requests."""
    read_end, parent_pipe = os.pipe()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        options = {"workers": 2, "preload": preload, "inherited_socket": listener.fileno(), "parent_pipe": read_end}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.weaker_server", user, json.dumps(refused), json.dumps(options)],
            cwd=Path(__file__).resolve().parents[2],
            pass_fds=[listener.fileno(), read_end],
        )
    os.close(read_end)
    try:
        yield Server(process, port)
    finally:
        os.close(parent_pipe)
        process.wait(20)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that is accessible to all users."""
    folder = Path(tempfile.mkdtemp(prefix="turnwise-host-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session", params=["this user", "ordinary user"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    if request.param == "ordinary user" and os.geteuid() != 0:
        pytest.skip("this user is one")
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    os.environ[_ENVIRONMENT_MARK] = "1"
    server = EmbeddedSandbox(workers=2) if request.param == "this user" else start_server("ordinary", [])
    try:
        with server as sandbox, open_folder() as folder:
            del os.environ[_ENVIRONMENT_MARK]
            host = Host(sandbox, folder, make_precious(folder), victim)
            _make_bait(host)
            assert (
                host.post("import numpy; print(1)")[1]["run_result"]["stdout"] == "1\n"
            )  # both interpreters are ready
            yield host
            for bait in host.sockets:
                bait.close()
    finally:
        victim.kill()
        victim.wait()


def make_precious(folder: Path) -> Path:
    """A folder with a file, which any user may empty."""
    precious = folder / "precious"
    precious.mkdir()
    precious.chmod(0o777)
    (precious / "file").write_text("precious")
    (precious / "file").chmod(0o666)
    return precious


def _make_bait(host: Host) -> None:
    readable = host.folder / "readable"
    readable.write_text("secret")
    readable.chmod(0o644)
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    path, name = str(host.folder / "socket"), f"{MARK}_{os.getpid()}"
    unix.bind(path)
    os.chmod(path, 0o777)
    abstract.bind("\0" + name)
    for bait in (tcp, udp, unix, abstract):
        bait.setblocking(False)
        host.sockets.append(bait)
    for listener in (unix, abstract):
        listener.listen()
    host.given = {
        "readable_file": str(readable),
        "open_folder": str(host.folder),
        "precious_folder": str(host.precious),
        "repository": str(Path(__file__).resolve().parents[2]),
        "environment_mark": _ENVIRONMENT_MARK,
        "server_pid": host.sandbox.pid,
        "victim_pid": host.victim.pid,
        "tcp_port": tcp.getsockname()[1],
        "udp_port": udp.getsockname()[1],
        "unix_socket": path,
        "abstract_socket": name,
    }
