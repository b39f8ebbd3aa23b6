"""Work in processes: each item once and in order, whatever happens to a process."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from Utils.errors import UserError
from Utils.workers import Failure, shared_out


def square(folder: Path, item: int) -> int:
    """Notes that it was called; 3 is refused, and 5 kills its process."""
    with open(folder / str(item), "a") as file:
        file.write(f"{os.getpid()}\n")
    if item == 3:
        raise UserError("3 is refused")
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05 * (item % 2))  # so that results come in another order
    return item * item


def make(folder: Path) -> Callable[[int], int]:
    return partial(square, folder)


def make_refusing() -> Callable[[int], int]:
    raise UserError("nothing can be made")


def broken(item: int) -> int:
    raise ZeroDivisionError("a mistake of ours")


def make_broken() -> Callable[[int], int]:
    return broken


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_each_item_is_done_once_and_a_killed_process_costs_one(tmp_path: Path) -> None:
    results = list(shared_out(partial(make, tmp_path), range(9), 2, "item {}".format))
    assert [item for item, _ in results] == list(range(9))
    outcomes = dict(results)
    refused, killed = outcomes.pop(3), outcomes.pop(5)
    assert outcomes == {item: item * item for item in outcomes}
    assert isinstance(refused, Failure)
    assert str(refused.error) == "3 is refused"
    assert isinstance(killed, Failure)
    assert str(killed.error).startswith("item 5: the worker process that had it was killed by SIGK")
    pids = [int((tmp_path / str(item)).read_text()) for item in range(9)]  # one line: one call
    assert len(set(pids)) <= 3  # two, and the replacement
    assert os.getpid() not in pids
    assert not any(map(alive, pids))


def test_results_are_the_same_without_workers(tmp_path: Path) -> None:
    items = [1, 2, 4, 0]
    alone = list(shared_out(partial(make, tmp_path), items, 0, str))
    assert alone == list(shared_out(partial(make, tmp_path), items, 2, str))
    assert int((tmp_path / "4").read_text().split()[0]) == os.getpid()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_made_is_one_error(workers: int) -> None:
    with pytest.raises(UserError, match=r"^nothing can be made$"):
        list(shared_out(make_refusing, [1, 2], workers, str))
    assert list(shared_out(make_refusing, [], workers, str)) == []


def test_mistakes_of_ours_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)^item 1 failed .*in broken.*ZeroDivisionError"):
        list(shared_out(make_broken, [1], 1, "item {}".format))


def test_processes_end_with_the_generator(tmp_path: Path) -> None:
    with closing(shared_out(partial(make, tmp_path), [0, 1, 2, 4, 6], 2, str)) as results:
        next(results)
    pids = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert pids
    assert not any(map(alive, pids))
