# ends: any
import ctypes

print("tried", flush=True)
ctypes.string_at(0)
