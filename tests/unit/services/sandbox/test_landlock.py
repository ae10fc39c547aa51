import os

import pytest

from rl.services.sandbox import kernel, landlock

pytestmark = pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")


def codes_of(actions) -> int:
    """The actions that a process under the rules could do, as bits."""
    pid = os.fork()
    if pid == 0:
        code = 0
        for i, action in enumerate(actions):
            try:
                action()
            except OSError:
                continue
            code |= 1 << i
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_rules_leave_what_they_name_and_nothing_else(tmp_path):
    for name in ("read", "write", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    rules = landlock.build_rules(
        [str(tmp_path / "read"), "/no/such/path"], [str(tmp_path / "write")], allow_internet=False
    )

    def restrict():
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        landlock.restrict(rules)

    actions = [
        restrict,
        (tmp_path / "read" / "file").read_text,
        (tmp_path / "write" / "new").touch,
        lambda: (tmp_path / "read" / "file").write_text(""),
        (tmp_path / "other" / "file").read_text,
        lambda: os.listdir(tmp_path),
    ]
    assert codes_of(actions) == 0b000111
    os.close(rules)


def test_rules_keep_signals_inside():
    if landlock.version() < 6:
        pytest.skip("this kernel cannot")
    rules = landlock.build_rules(["/"], [], allow_internet=True)

    def restrict():
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        landlock.restrict(rules)

    assert codes_of([lambda: os.kill(os.getppid(), 0), restrict, lambda: os.kill(os.getppid(), 0)]) == 0b011
    os.close(rules)
