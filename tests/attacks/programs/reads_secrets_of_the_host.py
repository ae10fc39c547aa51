import os

from attack import attempt, read

for path in ("/etc/shadow", "/etc/hostname", "/etc/machine-id", "/root/.bashrc", "/root/.profile", "/var/log/dpkg.log"):
    attempt(path, lambda path=path: read(path))
for path in ("/home", "/etc/ssh", "/var/lib", "/run", "/root/.cache", "/boot", "/sys", "/mnt"):
    attempt(path, lambda path=path: os.listdir(path))
print("tried")
