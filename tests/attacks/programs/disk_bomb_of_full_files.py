size = 0
try:
    for i in range(40):
        with open(f"turnwise_attack_{i}", "wb") as file:
            size += file.write(bytes(5 << 20))
except OSError:
    pass
print("ESCAPED: disk" if size > 100 << 20 else "tried")
