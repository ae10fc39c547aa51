num_files = 0
try:
    while num_files < 30_000:
        open(f"turnwise_attack_{num_files}", "w").close()
        num_files += 1
except OSError:
    pass
print("ESCAPED: files" if num_files >= 30_000 else "tried")
