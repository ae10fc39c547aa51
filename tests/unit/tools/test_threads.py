import asyncio
import threading

import pytest

from rl.tools.threads import ThreadPool


async def test_thread_pool_keeps_its_threads():
    pool = ThreadPool("t")
    first = await pool.run(threading.get_ident)
    assert await pool.run(threading.get_ident) == first
    together = threading.Barrier(2)

    def meet() -> int:
        together.wait(5)
        return threading.get_ident()

    assert len(set(await asyncio.gather(pool.run(meet), pool.run(meet)))) == 2
    pool.close()


@pytest.mark.parametrize("error", [ValueError, SystemExit])
async def test_thread_pool_raises_what_the_function_raised(error):
    def work() -> None:
        raise error("x")

    pool = ThreadPool("t")
    with pytest.raises(error):
        await pool.run(work)
    assert await pool.run(lambda: 1) == 1
    assert pool.num_abandoned == 0


async def test_thread_pool_survives_an_exception_that_futures_refuse():
    with pytest.raises(RuntimeError, match="StopIteration"):
        await ThreadPool("t").run(lambda: next(iter([])))


async def test_thread_pool_abandons_the_thread_of_a_cancelled_caller():
    pool, event = ThreadPool("t"), threading.Event()
    threads: list[threading.Thread] = []

    def block() -> None:
        threads.append(threading.current_thread())
        event.wait(30)

    waiting = asyncio.ensure_future(pool.run(block))
    while not threads:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.num_abandoned == 1
    assert await pool.run(threading.current_thread) is not threads[0]
    event.set()
    threads[0].join(5)
    assert not threads[0].is_alive()
    pool.close()
