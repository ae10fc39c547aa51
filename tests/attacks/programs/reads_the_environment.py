import os

from attack import given

texts = [repr(dict(os.environ))]
for name in (*filter(str.isdigit, os.listdir("/proc")), "self", str(given["server_pid"])):
    try:
        with open(f"/proc/{name}/environ", "rb") as file:
            texts.append(repr(file.read()))
    except OSError:
        pass
print("ESCAPED: environment" if any(given["environment_mark"] in text for text in texts) else "tried")
