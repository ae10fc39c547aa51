# ends: any
import builtins
import os
import sys

print("tried", flush=True)
builtins.open = os._exit = sys.exit = lambda *_: None
sys.excepthook = lambda *_: (_ for _ in ()).throw(SystemExit)
sys.modules.clear()
raise ValueError
