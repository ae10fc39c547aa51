import asyncio
import random

import pytest

from rl.services.sandbox.admission import Admission, ClosedError, QueueFullError, QueueTimeoutError, Turn


class Requests:
    """Requests that hold their slot until they are released. Records the order of admission."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.entered: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.turns: dict[str, Turn] = {}

    async def start(self, *names: str, timeout: float = 60.0) -> None:
        """Start requests named `<caller><number>`."""
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name, timeout))
            await settle()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await settle()

    async def _run(self, name: str, timeout: float) -> None:
        async with self.admission.admit(name[0], timeout) as self.turns[name]:
            self.entered.append(name)
            await self.ends[name].wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_admission_takes_turns_between_callers():
    requests = Requests(Admission(1, 10))
    await requests.start("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    for name in ("a1", "a2", "b1", "c1", "a3", "b2", "a4"):
        await requests.end(name)
    assert requests.entered == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]
    assert (requests.admission.num_running, requests.admission.num_waiting) == (0, 0)


async def test_admission_lets_as_many_run_as_there_are_slots():
    requests = Requests(Admission(2, 10))
    await requests.start("a1", "a2", "a3")
    assert requests.entered == ["a1", "a2"]
    assert (requests.admission.num_running, requests.admission.num_waiting) == (2, 1)
    await requests.end("a2")
    assert requests.entered == ["a1", "a2", "a3"]
    await requests.end("a1")
    await requests.end("a3")


async def test_admission_tells_how_long_a_request_waited():
    admission = Admission(1, 1)
    async with admission.admit("a", 1.0) as first:
        with pytest.raises(QueueTimeoutError, match=r"no worker was free within 0.05 s; the program was not run"):
            async with admission.admit("b", 0.05):
                pass
    async with admission.admit("b", 0.05) as second:
        pass
    assert 0 <= first.waited_s < 0.05
    assert 0 <= second.waited_s < 0.05


async def test_admission_refuses_at_once_when_the_queue_is_full():
    requests = Requests(Admission(1, 2))
    await requests.start("a1", "a2", "a3")
    with pytest.raises(QueueFullError, match="2 programs are already waiting"):
        async with requests.admission.admit("a", 60.0):
            pass
    for name in ("a1", "a2", "a3"):
        await requests.end(name)


async def test_admission_makes_room_at_the_cost_of_the_longest_queue():
    requests = Requests(Admission(1, 3))
    await requests.start("a1", "a2", "a3", "a4", "b1")
    with pytest.raises(QueueFullError, match="most of them from this caller"):
        await requests.tasks["a4"]
    with pytest.raises(QueueFullError):  # b has as many requests as a already
        async with requests.admission.admit("b", 60.0):
            pass
    for name in ("a1", "a2", "b1", "a3"):
        await requests.end(name)


async def test_admission_without_a_queue_refuses_what_cannot_run_at_once():
    admission = Admission(1, 0)
    async with admission.admit("a", 60.0):
        with pytest.raises(QueueFullError):
            async with admission.admit("b", 60.0):
                pass


async def test_admission_forgets_a_request_whose_client_is_gone():
    requests = Requests(Admission(1, 2))
    await requests.start("a1", "a2", "b1")
    requests.tasks["a2"].cancel()
    await settle()
    assert requests.admission.num_waiting == 1
    await requests.end("a1")
    assert requests.entered == ["a1", "b1"]
    await requests.end("b1")


async def test_admission_gives_on_a_slot_that_came_too_late():
    requests = Requests(Admission(1, 2))
    await requests.start("a1", "a2", "b1")
    requests.ends["a1"].set()
    await asyncio.sleep(0)  # a1 ends, and its slot goes to a2, which has not noticed
    requests.tasks["a2"].cancel()
    await settle()
    assert requests.entered == ["a1", "b1"]
    await requests.end("b1")
    assert requests.admission.num_running == 0


async def test_admission_closed_refuses_what_waits_and_lets_the_rest_end():
    requests = Requests(Admission(1, 2))
    await requests.start("a1", "a2")
    requests.admission.close()
    with pytest.raises(ClosedError, match="stopping"):
        await requests.tasks["a2"]
    with pytest.raises(ClosedError):
        async with requests.admission.admit("b", 1.0):
            pass
    assert not await requests.admission.wait_idle(0.01)
    await requests.end("a1")
    assert await requests.admission.wait_idle(0.01)


async def test_admission_gives_the_slot_of_a_request_that_waits_to_the_next():
    requests = Requests(Admission(1, 10, num_places=3))
    await requests.start("a1", "b1", "c1", "d1")
    for name in ("a1", "b1"):
        requests.turns[name].set_waiting(True)
        requests.turns[name].set_waiting(True)
        await settle()
    assert requests.entered == ["a1", "b1", "c1"]
    requests.turns["c1"].set_waiting(True)
    await settle()
    assert requests.entered == ["a1", "b1", "c1"]  # all places are taken
    for name in ("a1", "b1"):
        requests.turns[name].set_waiting(False)  # both compute: one more than there are slots
    await requests.end("c1")
    assert (requests.entered, requests.admission.num_running) == (["a1", "b1", "c1"], 2)
    await requests.end("a1")
    assert requests.entered == ["a1", "b1", "c1"]
    await requests.end("b1")
    assert requests.entered == ["a1", "b1", "c1", "d1"]
    await requests.end("d1")
    assert requests.admission.num_running == 0


async def test_admission_leaves_places_to_others_than_the_one_whose_requests_all_wait():
    requests = Requests(Admission(2, 10, num_places=6))
    await requests.start("a1", "a2", "a3", "a4", "a5", "a6")
    for name in ("a1", "a2", "a3", "a4"):
        requests.turns[name].set_waiting(True)
        await settle()
    assert requests.entered == ["a1", "a2", "a3", "a4"]
    await requests.start("b1", "b2", "b3")
    assert requests.entered[4:] == ["b1", "b2"]
    await requests.end("b1")
    assert requests.entered[6:] == ["b3"]
    await requests.end("a1")
    await requests.end("b2")
    assert requests.entered[7:] == ["a5"]


async def test_admission_loses_no_slot_whatever_happens():
    admission, choose = Admission(3, 8, num_places=5), random.Random(0)
    most = 0

    async def request(caller: str, delay: float, patience: float) -> None:
        nonlocal most
        async with admission.admit(caller, patience) as turn:
            most = max(most, admission.num_running)
            await asyncio.sleep(delay)
            for is_waiting in choose.choices([True, False], k=choose.randint(0, 3)):
                turn.set_waiting(is_waiting)
                await asyncio.sleep(delay)

    tasks = []
    for _ in range(400):
        delay, patience = choose.choice([0, 0.001, 0.003]), choose.choice([0, 0.001, 1])
        tasks.append(asyncio.create_task(request(choose.choice("abc"), delay, patience)))
        if choose.random() < 0.3:
            choose.choice(tasks).cancel()
        if choose.random() < 0.3:
            await asyncio.sleep(0.001)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(o) for o in outcomes} <= {type(None), QueueFullError, QueueTimeoutError, asyncio.CancelledError}
    assert outcomes.count(None) > 20
    assert (most, admission.num_running, admission.num_waiting) == (5, 0, 0)
    for _ in range(3):
        await admission._enter("a", 0.0)
    with pytest.raises(QueueTimeoutError):
        await admission._enter("b", 0.0)
