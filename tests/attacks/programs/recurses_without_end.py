# ends: any
import sys

print("tried", flush=True)
sys.setrecursionlimit(10**9)
f = lambda g: g(g)  # noqa: E731
f(f)
