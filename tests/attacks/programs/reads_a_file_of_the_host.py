from attack import attempt, given, read

attempt("a file that all users may read", lambda: read(given["readable_file"]))
attempt("the same from the root of another process", lambda: read(f"/proc/1/root{given['readable_file']}"))
attempt("the same from a folder of another process", lambda: read(f"/proc/1/cwd/../../..{given['readable_file']}"))
print("tried")
