"""Starts a sandbox as another user or with parts of isolation refused: called with both, a listener and a pipe."""

import json
import os
import sys

from tests.unit.services.ordinary_user import become_nobody
from tests.unit.services.refusals import refuse

if __name__ == "__main__":
    user, refused, listener, parent_pipe = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    if user == "ordinary" and os.geteuid() == 0:
        become_nobody()
    refuse(refused)
    from rl.services.sandbox import serve

    serve(workers=2, preload=(), inherited_socket=listener, parent_pipe=parent_pipe)
