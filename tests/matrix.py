"""What `make test` runs of a matrix of parameters; `make test-thorough` runs the rest."""

import itertools

import pytest


def thorough(*values):
    """Values of a parameter that only the thorough tests take."""
    return [_param(value, pytest.mark.thorough) for value in values]


def first(values, count=1):
    """All values; those after the first ones only in the thorough tests."""
    values = [*values]
    return [*values[:count], *thorough(*values[count:])]


def pairs(rows, columns):
    """All pairs. Each row and column is in a default test, all other pairs are thorough."""
    rows, columns = [*rows], [*columns]
    size = max(len(rows), len(columns))
    default = {(i % len(rows), i % len(columns)) for i in range(size)}
    return [
        _param((rows[i], columns[j]), *([] if (i, j) in default else [pytest.mark.thorough]))
        for i, j in itertools.product(range(len(rows)), range(len(columns)))
    ]


def _param(value, *marks):
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks)
