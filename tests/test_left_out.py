"""Files that are left out are told in few lines."""

from concurrent.futures import ThreadPoolExecutor

from vbq.command import UserError
from vbq.left_out import MOST_NAMED, LeftOut


def test_the_first_are_named_and_the_rest_are_counted():
    lines = []
    left_out = LeftOut(lines.append)

    def add(i):
        left_out.add(f"{i}.png", UserError(f"{i}.png is no image"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, [*range(1000), *range(1000)]))
    assert len(lines) == MOST_NAMED and all(line.endswith(".png is no image") for line in lines)
    assert len(set(lines)) == MOST_NAMED and lines[0].startswith("left out: ")
    left_out.tell_rest()
    assert lines[MOST_NAMED:] == [f"left out: {1000 - MOST_NAMED} more files that cannot be used"]
    left_out.tell_rest()  # nothing new
    add(5)
    add(1000)
    left_out.tell_rest()
    assert lines[MOST_NAMED + 1 :] == ["left out: 1 more file that cannot be used"]
