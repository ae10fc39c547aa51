import os

from attack import attempt, given

attempt("its files", lambda: os.listdir(os.path.join(given["repository"], "rl")))
attempt("its history", lambda: os.listdir(os.path.join(given["repository"], ".git")))
try:
    import rl
except ImportError:
    print("tried")
else:
    print("ESCAPED: import", rl)
