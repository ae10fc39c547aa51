"""Starts a sandbox as another user or without some layers. Arguments: both, and options for `serve`."""

import json
import os
import sys

from tests.unit.services.sandbox.ordinary_user import become_nobody
from tests.unit.services.sandbox.refusals import refuse

if __name__ == "__main__":
    user, refused, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    if user == "ordinary" and os.geteuid() == 0:
        become_nobody()
    refuse(refused)
    from rl.services.sandbox.server import serve

    if options["preload"] is not None:
        options["preload"] = tuple(options["preload"])
    serve(**options)
