"""The options and fixtures of tests/conftest.py, each in a pytest of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.goldens import Golden, case_name
from tests.structure import checks

pytest_plugins = ["pytester"]


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    options = ("-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(checks.ROOT / "pyproject.toml"))
    return pytester.runpytest_inprocess(*options, f"--rootdir={pytester.path}", *arguments)


TESTS = """
import pytest

def test_fast(): ...

@pytest.mark.slow
def test_slow(): ...
"""


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [((), 1), (("--slow",), 2), (("-m", "slow"), 1), (("-m", "not slow"), 1), (("test_it.py::test_slow",), 1)],
)
def test_slow_tests_run_only_on_demand(pytester: pytest.Pytester, arguments: tuple[str, ...], passed: int) -> None:
    pytester.makepyfile(test_it=TESTS)
    arguments = arguments if any("::" in a for a in arguments) else (*arguments, "test_it.py")
    outcomes = run(pytester, *arguments).parseoutcomes()
    outcomes.pop("warnings", None)
    assert outcomes == {"passed": passed} | ({} if passed == 2 or "::" in arguments[-1] else {"deselected": 1})


def test_golden_is_written_by_the_flag_and_compared_without_it(tmp_path: Path) -> None:
    test, path = tmp_path / "test_fold.py", tmp_path / "golden" / "fold" / "linear-bf16.py"
    case = case_name("test_linear[bf16]")
    compare, update = Golden(test, case, update=False), Golden(test, case, update=True)
    with pytest.raises(pytest.fail.Exception, match="no golden file"):
        compare("def f(x): ...")
    update("def f(x): ...")
    assert path.read_text() == "def f(x): ...\n"
    compare("def f(x): ...\n")
    with pytest.raises(AssertionError, match="--update-golden"):
        compare("def f(y): ...")
    compare("def f(x): ...")
    update("# two\n", case="two", suffix=".txt")
    assert (tmp_path / "golden" / "fold" / "two.txt").read_text() == "# two\n"


def test_golden_fixture_takes_its_names_from_the_test(golden: Golden) -> None:
    expected = Path(__file__).parent / "golden" / "conftest" / "golden_fixture_takes_its_names_from_the_test.py"
    assert golden.path() == expected
