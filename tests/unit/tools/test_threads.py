import asyncio
import threading

import pytest

from rl.tools.threads import ThreadPool


async def test_thread_pool_keeps_its_threads():
    pool = ThreadPool("t")
    first = await pool.start(threading.get_ident)
    assert await pool.start(threading.get_ident) == first
    together = threading.Barrier(2)

    def meet() -> int:
        together.wait(5)
        return threading.get_ident()

    assert len(set(await asyncio.gather(pool.start(meet), pool.start(meet)))) == 2
    pool.close()


@pytest.mark.parametrize("error", [ValueError, SystemExit])
async def test_thread_pool_raises_what_the_function_raised(error):
    def work() -> None:
        raise error("x")

    pool = ThreadPool("t")
    with pytest.raises(error):
        await pool.start(work)
    assert await pool.start(lambda: 1) == 1
    assert pool.num_abandoned == 0


async def test_thread_pool_survives_an_exception_that_futures_refuse():
    with pytest.raises(RuntimeError, match="StopIteration"):
        await ThreadPool("t").start(lambda: next(iter([])))


async def test_thread_pool_counts_an_abandoned_thread_until_it_ends():
    pool, event = ThreadPool("t"), threading.Event()
    threads: list[threading.Thread] = []

    def block() -> None:
        threads.append(threading.current_thread())
        event.wait(30)
        raise OSError("nobody waits for this")

    left = pool.start(block)
    while not threads:
        await asyncio.sleep(0)
    pool.abandon(left)
    assert (pool.num_abandoned, pool.num_running_abandoned) == (1, 1)
    assert await pool.start(threading.current_thread) is not threads[0]
    event.set()
    await asyncio.wait({left})
    await asyncio.sleep(0)
    assert (pool.num_abandoned, pool.num_running_abandoned) == (1, 0)
    threads[0].join(5)
    assert not threads[0].is_alive()
    pool.close()
