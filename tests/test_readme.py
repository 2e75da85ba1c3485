"""The examples of the README's first screen give what they say."""

import ast
import re

import duckdb
import pytest

from ebm_encode.cli import main
from support import FILES, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def _demo_files(llama, tmp_path, monkeypatch):
    """The files that `make demo` leaves, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-out").mkdir()
    (tmp_path / "demo-out" / "model").symlink_to(llama)
    inputs = ["--model-path", "demo-out/model", "--trajectories", *map(str, FILES)]
    assert main(["encode", *inputs, "--output", "demo-out/states.parquet", "--quiet"]) == 0


@pytest.mark.usefixtures("_demo_files")
def test_each_line_of_python_gives_what_its_comment_says():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names = {}
    said = 0
    for statement in ast.parse(code).body:
        line = code.splitlines()[statement.lineno - 1].partition("  # ")
        if isinstance(statement, ast.Expr):
            value = eval(line[0], names)
        else:
            exec(line[0], names)
            value = names.get(line[0].partition(" = ")[0])
        if line[2]:
            assert re.split(r";|\.\.\.", line[2])[0] in repr(value)
            said += 1
    assert said == 3


@pytest.mark.usefixtures("_demo_files")
def test_the_query_prints_the_table_that_stands_there():
    query, table = re.search(r'>>> duckdb\.sql\("([^\n]*)"\)\n(.*?)```', README, re.DOTALL).groups()
    assert str(duckdb.sql(query)).strip() == table.strip()
