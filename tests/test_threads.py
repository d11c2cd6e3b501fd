"""Work in threads."""

import os
import threading

import pytest

from vbq.threads import cores, parallel


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_results_are_in_the_order_of_the_items(threads):
    assert parallel(lambda x: x * x, range(20), threads) == [x * x for x in range(20)]
    assert parallel(lambda x: x, [], threads) == []


def test_one_thread_is_the_callers():
    assert parallel(lambda _: threading.get_ident(), range(3), threads=1) == [threading.get_ident()] * 3


def test_threads_run_at_once():
    both = threading.Barrier(2, timeout=60)
    assert sorted(parallel(lambda _: both.wait(), range(2), threads=2)) == [0, 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_errors_reach_the_caller(threads):
    with pytest.raises(ZeroDivisionError):
        parallel(lambda x: 1 // x, [1, 0, 2], threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bar_changes_no_result(threads, capsys):
    assert parallel(lambda x: -x, range(5), threads, desc="test") == [0, -1, -2, -3, -4]
    assert capsys.readouterr() == ("", "")  # a bar appears on a terminal only


def test_there_is_a_core():
    assert cores() >= 1


def test_cores_are_those_of_the_container(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1
