"""Small programs that try to escape. The sandbox contains them and continues to serve."""

import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


def run(post, code, **fields):
    return post(code, **fields)["run_result"]


def has_layer(sandbox, name):
    return sandbox.health()["isolation"][name]


def processes_with(mark: str) -> list[str]:
    """Processes of this machine whose environment or command line contains the mark."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            text = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/comm").read_bytes()
        except OSError:
            continue
        if mark.encode() in text:
            found.append(name)
    return found


def test_a_daemon_dies_with_its_program(post):
    mark = f"tw{uuid.uuid4().hex[:8]}"
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.closerange(0, 3)\n"
        f"        os.execv('/bin/sleep', ['{mark}', '60'])\n"
        "    os._exit(0)\n"
        "time.sleep(0.2)\nprint('left')"
    )
    assert run(post, code)["stdout"] == "left\n"
    assert processes_with(mark) == []


def test_a_daemon_dies_at_the_deadline_of_its_program(post):
    mark = f"tw{uuid.uuid4().hex[:8]}"
    code = f"(setsid bash -c 'exec -a {mark} sleep 60' &) ; sleep 60"
    assert run(post, code, language="bash", run_timeout=0.5)["status"] == "TimeLimitExceeded"
    assert processes_with(mark) == []


def test_descendants_are_killed_without_a_pid_namespace():
    program = (
        "import os, time\n"
        "from rl.services.sandbox.processes import Processes, become_subreaper\n"
        "become_subreaper()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    for _ in range(3):\n"
        "        if os.fork() == 0: time.sleep(60); os._exit(0)\n"
        "    os._exit(0)\n"
        "time.sleep(0.2)\n"
        "proc = os.open('/proc', os.O_RDONLY)\n"
        "Processes(proc, has_pid_namespace=False, is_private=True).kill_all()\n"
        "try: os.waitpid(-1, 0)\n"
        "except ChildProcessError: print('none left')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.stderr) == ("none left\n", "")


def test_a_daemon_that_holds_the_output_does_not_delay_the_answer(post):
    start = time.monotonic()
    assert run(post, "(sleep 30 &)\necho done", language="bash")["stdout"] == "done\n"
    assert time.monotonic() - start < 5


def test_a_fork_bomb_is_bounded(sandbox, post):
    if not has_layer(sandbox, "process_limit"):
        pytest.skip("this machine cannot limit the processes of one program")
    code = (
        "import os, time\n"
        "n = 0\n"
        "for _ in range(200):\n"
        "    try:\n"
        "        if os.fork() == 0: time.sleep(30); os._exit(0)\n"
        "        n += 1\n"
        "    except BlockingIOError: break\n"
        "print(n)"
    )
    assert 10 < int(run(post, code)["stdout"]) < 70
    assert run(post, "print('still here')")["stdout"] == "still here\n"


def test_a_memory_hog_gets_a_memory_error(post):
    result = run(post, "x = bytearray(600 << 20)", memory_limit_MB=256)
    assert result["return_code"] == 1
    assert result["stderr"].rstrip().endswith("MemoryError")


def test_a_large_file_is_refused(post):
    result = run(post, "f = open('big', 'wb')\nf.truncate(1 << 30)")
    assert result["return_code"] != 0


def test_endless_output_ends(post):
    result = run(post, "while True: print('x' * 100_000)", run_timeout=2)
    assert result["stdout"].endswith("(output cut after 1048576 bytes)")


def test_descriptors_run_out_for_the_program_alone(post):
    code = "files = []\ntry:\n    while True: files.append(open('main.py'))\nexcept OSError: print(len(files) < 300)"
    assert run(post, code)["stdout"] == "True\n"


def test_the_network_is_out_of_reach(sandbox, post):
    if not has_layer(sandbox, "network"):
        pytest.skip("this machine refuses network namespaces")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        code = (
            f"import socket\ntry: socket.create_connection(('127.0.0.1', {port}), 1)\nexcept OSError: print('refused')"
        )
        assert run(post, code)["stdout"] == "refused\n"
        with pytest.raises(TimeoutError):
            listener.accept()


def test_each_program_has_an_empty_directory_that_is_removed(post):
    first = run(post, "import os; open('left', 'w'); print(os.getcwd(), os.listdir())")["stdout"].split(maxsplit=1)
    assert first[1] == "['main.py', 'left']\n" or first[1] == "['left', 'main.py']\n"
    second = run(post, "import os; print(os.getcwd(), os.listdir())")["stdout"].split(maxsplit=1)
    assert second[1] == "['main.py']\n"
    assert not os.path.exists(first[0])


def test_a_directory_closed_by_its_program_is_removed_too(post):
    code = "import os; os.makedirs('a/b'); open('a/b/c', 'w'); os.chmod('a/b', 0); os.chmod('a', 0); print(os.getcwd())"
    assert not os.path.exists(run(post, code)["stdout"].strip())


def test_neighbours_and_the_server_cannot_be_killed(sandbox, post):
    if not has_layer(sandbox, "pid"):
        pytest.skip("this machine refuses pid namespaces, and the attempt would be real")
    code = f"import os\ntry: os.kill({sandbox.pid}, 9)\nexcept OSError as e: print(type(e).__name__)"
    assert run(post, code)["stdout"] in ("ProcessLookupError\n", "PermissionError\n")
    assert run(post, "import os, signal\nos.kill(-1, signal.SIGKILL)\nprint('alone')")["return_code"] is not None
    assert sandbox.health()["status"] == "ok"


def test_the_machine_cannot_be_written_to(sandbox, post, tmp_path):
    if not has_layer(sandbox, "own_uid"):
        pytest.skip("programs run as this user")
    target = tmp_path / "target"
    code = f"try: open({str(target)!r}, 'w')\nexcept OSError as e: print(type(e).__name__)"
    assert run(post, code)["stdout"] in ("FileNotFoundError\n", "PermissionError\n")
    assert not target.exists()


def test_the_environment_of_the_server_is_not_visible(post):
    names = run(post, "import os; print(*sorted(os.environ))")["stdout"].split()
    assert set(names) <= {
        *("PATH", "LANG", "HOME", "USER", "TMPDIR", "PYTHONHASHSEED", "LC_CTYPE"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    }


def test_the_same_program_prints_the_same_each_time(post):
    code = "print({'a', 'b', 'c', 'd', 'e'})\nopen('missing')"
    first, second = (run(post, code) for _ in range(2))
    assert (first["stdout"], first["stderr"]) == (second["stdout"], second["stderr"])
