from attack import attempt, call

attempt("shared memory of System V", lambda: call("shmget", 0x7477, 1 << 20, 0o1666))
attempt("a message queue", lambda: call("msgget", 0x7477, 0o1666))
attempt("semaphores", lambda: call("semget", 0x7477, 10, 0o1666))
attempt("a queue of POSIX", lambda: call("mq_open", b"/turnwise_attack", 0o102, 0o666, None))
print("tried")
