import os
import subprocess
import sys
import tempfile

from rl.services.owned_folder import OwnedFolder

HOLD = """
import sys
from rl.services.owned_folder import OwnedFolder
print(OwnedFolder("turnwise-sandbox-").path, flush=True)
sys.stdin.read()
"""


def test_folder_of_a_killed_process_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = tmp_path / "turnwise-sandbox-of-nobody"
    others.mkdir()
    owners = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            text=True,
        )
        for _ in range(2)
    ]
    try:
        killed, living = (owner.stdout.readline().strip() for owner in owners)
        os.makedirs(f"{killed}/zygote")
        owners[0].kill()
        owners[0].wait()
        found = []
        folder = OwnedFolder("turnwise-sandbox-", on_abandoned=found.append)
        assert [str(path) for path in found] == [killed]
        assert {str(path) for path in tmp_path.iterdir()} == {living, str(folder.path), str(others)}
        folder.close()
        assert not folder.path.exists()
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()


def test_folder_goes_with_what_programs_leave_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    folder = OwnedFolder("turnwise-sandbox-")
    os.symlink(kept, folder.path / "link")
    home = os.getcwd()
    os.chdir(folder.path)
    for _ in range(1100):
        os.mkdir("deep")
        os.chdir("deep")
    os.chdir(home)
    folder.close()
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(kept) == ["file"]
