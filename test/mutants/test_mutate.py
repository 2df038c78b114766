import pytest

from mutants.mutate import find_mutants
from mutants.tests import MORE, TEST, find_tests


def get_sources(source):
    return [mutant.apply(source) for mutant in find_mutants(source)]


@pytest.mark.parametrize(
    ('source', 'expected'),
    [
        ('x < y', ['(x <= y)']),
        ('x and not y', ['(x or not y)', 'x and (y)']),
        ('é + f(x=2)', ['(é - f(x=2))', 'é + f()', 'é + f(x=3)']),
        ('x.min()', ['pass', 'x.max()']),
        ('x = True', ['x = False']),
        ('x = [a, b]', ['x = [b]', 'x = [a]']),
        ('x[:, None]', ['x[(None,)]']),
        ('if x:\n    continue', ['if x:\n    pass']),
        ('def f(x: int = 1): pass', ['def f(x: int = 2): pass']),
        ('def f(): return 1', ['def f(): return', 'def f(): return 2']),
    ],
)
def test_find_mutants(source, expected):
    assert sorted(get_sources(source)) == sorted(expected)


@pytest.mark.parametrize(
    'source',
    [
        '"""Return 1."""',
        '__all__ = ["x", "y"]',
        'raise ValueError(1 + 1)',
        "warnings.warn('x', stacklevel=2)",
        "f'{1 + 1}'",
        'from x import y',
        'x: Tuple[int, str]',
        'x = Callable[[int], str]',
    ],
)
def test_texts_and_types_stay(source):
    assert find_mutants(source) == []


def test_describe():
    source = 'y = 0\nx = f(\n    1\n)\n'
    assert find_mutants(source)[-1].describe(source) == '1 :: 1 -> 2'


def test_tests_exist():
    for module in MORE:
        assert (TEST.parent / 'torch_geometric_ext' / module).exists()
        assert find_tests(module) != []
        for name in find_tests(module):
            assert (TEST.parent / name).exists(), name
