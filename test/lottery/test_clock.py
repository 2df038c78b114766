import time

import pytest

from torch_geometric_ext.lottery.clock import Clock


@pytest.fixture
def sleep(monkeypatch):
    """Lets time pass at once."""
    now = [100.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])

    def sleep(seconds):
        now[0] += seconds

    return sleep


def test_clock(sleep):
    clock = Clock()
    sleep(1)
    with clock.measure('dense'):
        sleep(10)
    sleep(2)
    assert clock.seconds() == {'dense': 10, 'other': 3}
    sleep(5)  # Of an unfinished part.
    assert clock.seconds(unfinished=5) == {'dense': 10, 'other': 3}
    for seconds in [15, 5]:
        with clock.measure('search'):
            sleep(seconds)
    assert clock.seconds() == {'dense': 10, 'search': 20, 'other': 8}


@pytest.mark.parametrize('other', [{'other': 3.0}, {}])
def test_clock_resumes(other, sleep):
    clock = Clock()
    sleep(4)
    clock.resume({'dense': 10.0, **other}, unfinished=5.0)
    sleep(1)
    clock.parts['search'] = 5.0
    total = 5 + sum(other.values())
    assert clock.seconds() == {'dense': 10, 'search': 5, 'other': total}
