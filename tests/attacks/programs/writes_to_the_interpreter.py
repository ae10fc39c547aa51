import os
import subprocess
import sys

from attack import attempt, write

attempt("a module", lambda: write(os.__file__, b"#"))
attempt("the interpreter", lambda: write(os.path.realpath(sys.executable), b"#"))
attempt("a program", lambda: write("/usr/bin/env", b"#"))
attempt("its rights", lambda: os.chmod("/usr/bin/env", 0o777))
attempt("its name", lambda: os.rename(os.__file__, os.__file__ + ".turnwise_attack"))
attempt("a site file", lambda: write(subprocess.__file__.replace("subprocess.py", "turnwise_attack.pth")))
print("tried")
