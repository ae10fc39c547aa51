import os

for _ in range(3000):
    os.mkdir("turnwise_attack")
    os.chdir("turnwise_attack")
os.chmod(".", 0)
print("tried")
