# ends: any
import os
import resource

print("tried", resource.getrlimit(resource.RLIMIT_CORE), flush=True)
os.abort()
