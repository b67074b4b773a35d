"""Room for pixels: no more than fit are in work, and nobody waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from litheseg.runtime.labeller import PixelRoom


def test_images_wait_while_there_is_no_room_for_them() -> None:
    room, lock = PixelRoom(100), threading.Lock()
    now, most = 0, 0

    def work(pixels: int) -> None:
        nonlocal now, most
        with room.taken(pixels):
            with lock:
                now += pixels
                most = max(most, now)
            threading.Event().wait(0.001)
            with lock:
                now -= pixels

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, [40, 10, 90, 30, 100, 20] * 10))
    assert 40 < most <= 100 and now == 0


def test_one_that_is_larger_than_all_room_goes_alone() -> None:
    room, order = PixelRoom(100), list[str]()
    done = threading.Event()

    def giant() -> None:
        with room.taken(1000):
            order.append("giant")
        done.set()

    with room.taken(1):
        thread = threading.Thread(target=giant)
        thread.start()
        assert not done.wait(0.05)
        order.append("small")
    assert done.wait(10) and order == ["small", "giant"]
    thread.join()


def test_room_is_given_back_after_an_error() -> None:
    room = PixelRoom(10)
    for _ in range(3):
        try:
            with room.taken(10):
                raise ValueError
        except ValueError:
            pass
    with room.taken(10):
        pass
