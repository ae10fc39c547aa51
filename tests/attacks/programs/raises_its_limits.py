import resource

from attack import attempt

for name in ("AS", "NPROC", "NOFILE", "FSIZE", "CPU", "CORE", "MEMLOCK"):
    number = getattr(resource, f"RLIMIT_{name}")
    more = resource.getrlimit(number)[1] + 1
    attempt(name, lambda number=number, more=more: resource.setrlimit(number, (more, more)))
print("tried")
