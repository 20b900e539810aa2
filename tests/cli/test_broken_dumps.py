"""A dump that a user broke gives one error with file, line and what is wrong, and the exit code of a user's mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from graphopt.ir.printer import dump, parse
from graphopt.testing import sketch, trace
from tests.cli.conftest import Run


class _Branches(torch.nn.Module):
    def forward(self, x: torch.Tensor, c: torch.Tensor) -> dict[str, torch.Tensor]:
        shifted: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))
        return {"first": shifted.sin(), "second": c.neg()}


@pytest.fixture(scope="module")
def text() -> str:
    """A dump with everything in it: relations, results in a dict, subgraphs."""
    program = trace(_Branches(), x=torch.ones(2, 3), c=torch.ones(3), roles={"c": "condition"}).program
    found = dump(program).replace("\n}\n", "\n}\nRELATIONS = [('Repeated', 'x', 2)]\n", 1)
    assert dump(parse(found)).count("RESULT = ") == 1
    return found


INPUT = r"x': \('state', 'x', 'f32\[2, 3\]'\)"
LINE = r"neg = .*"  # the last one before the return


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # inputs
        (INPUT, "x': ('stat', 'x', 'f32[2, 3]')", r"no role 'stat' .*:\d+: 'x': .*next: did you mean 'state'"),
        (INPUT, "x': ('state', 'x', 'f33[2, 3]')", r"'f33' is no dtype .*:\d+: 'x'"),
        (INPUT, "x': ('state', 'x', 'nn[2, 3]')", r"'nn' is no dtype .*:\d+: 'x'"),
        (INPUT, "x': ('state', 'x', 'f32[-2, 3]')", r"the size -2 is negative .*:\d+: 'x'"),
        (INPUT, "x': ('state', 'x', 'f32[2 3]')", r"'2 3' cannot be read: .*commas .*:\d+: 'x'"),
        (INPUT, "x': ('state', 'x', 'f32[2, y]')", r"the size 'y' cannot be read.*:\d+: 'x'"),
        (INPUT, "x': ('state', 'x', 'f32[9**9**9]')", r"the size '9 \*\* 9 \*\* 9' cannot be read.*:\d+: 'x'"),
        (INPUT, "x': ('state', 'x', 'f32[2//0]')", r"the size '2 // 0' cannot be read.*:\d+: 'x'"),
        (INPUT, "x': ('state', 'x', 'f32[99999999999999999999]')", r"the size 9+ is too large.*:\d+: 'x'"),
        (INPUT, "x': ('state', 'x', 'f32[2, 3] strides (1,)')", r"2 dimensions and 1 strides .*:\d+: 'x'"),
        (INPUT, "x': ('state', 'x', 'f32[2, 3] on mars')", r"RuntimeError: .*mars .*:\d+: 'x'"),
        (INPUT, "x': ('state' 'x', 'f32[2, 3]')", r"must read: 'name': \('role', 'path', 'value'\) .*:\d+: 'x'"),
        (INPUT, "x': 3", r"must read: 'name': \('role', 'path', 'value'\) .*:\d+: 'x': 3"),
        (INPUT, "x': open('x')", r"open\('x'\) is not written out .*:\d+: 'x'"),
        (INPUT + ",", "x': ('state', 'x', 'f32[2, 3]')", r"not a readable dump: .*:\d+"),
        (f"'{INPUT},", r"\g<0>\g<0>", r"the input 'x' stands twice .*:\d+: 'x'"),
        (f"'{INPUT},", r"**{},", r"\*\* is not written out .*:\d+: \*\*"),
        (f"'{INPUT},", r"3: ('state', 'x', 'f32[2, 3]'),", r"must read: 'name': .*:\d+: 3: "),
        (f"'{INPUT},", r"'class': ('state', 'x', 'f32[2, 3]'),", r"the input 'class' cannot be called so .*:\d+"),
        (r"INPUTS = \{", "INPUTS = [] and {", r"INPUTS must be written out: \{name: value, …\} .*:\d+: INPUTS"),
        (r"INPUTS = \{", "OTHER = {", r"there is no INPUTS"),
        # what else stands above the function
        (r"RESULT = .*", "RESULT = 'junk'", r"RESULT does not say .*JSONDecodeError.*:\d+: RESULT.*next: leave"),
        (r"RESULT = .*", "RESULT = '[]'", r"RESULT does not say .*IndexError.*:\d+: RESULT"),
        (r"RESULT = .*", "RESULT = '[1, 2]'", r"RESULT does not say .*TypeError.*:\d+: RESULT"),
        (r"RESULT = .*", "RESULT = 3", r"RESULT must be a str, not a int .*:\d+: RESULT = 3"),
        (r"\"type\": \"builtins.dict\"", '"type": "diffusers.no.Such"', r"RESULT does not say .*ModuleNot.*:\d+:"),
        (r"RELATIONS = .*", "RELATIONS = ['junk']", r"no relation 'junk' \(Repeated.*:\d+: RELATIONS"),
        (r"RELATIONS = .*", "RELATIONS = [([], 2)]", r"no relation \[\] .*:\d+: RELATIONS"),
        (r"'Repeated', 'x', 2", "'Repeated', 'x', '2'", r"must read: \('Repeated', path, times\).*:\d+: RELATIONS"),
        (r"'Repeated', 'x', 2", "'Repeated', 'x', 0", r"must read: \('Repeated', path, times\).*:\d+: RELATIONS"),
        (r"'Repeated', 'x', 2", "'Repeated', 'x'", r"must read: \('Repeated', path, times\).*:\d+: RELATIONS"),
        (r"RELATIONS = .*", r"SIZES = {'s0': '3'}", r"sizes must read: .*:\d+: SIZES"),
        (r"RELATIONS = .*", r"SIZES = {3: 3}", r"sizes must read: .*:\d+: SIZES"),
        (r"RELATIONS = .*", r"SIZES = []", r"SIZES must be a dict, not a list .*:\d+: SIZES"),
        # the function
        (r"def program\(", "def programme(", r"there is no function 'program'.*next: dumps are written by"),
        (r"def program\(", "def program(x,", r"not a readable dump: duplicate argument 'x'.*:\d+"),
        (r"def program\(", "def program(*more, ", r"must be names and nothing else .*:\d+: def program"),
        (r"    c,\n\):", "    c=3,\n):", r"must be names and nothing else .*:\d+: def program"),
        (r"    c,\n\):", "):", r"are not those of INPUTS: c .*:\d+: def program"),
        (r"return \(sin, neg\)", "return (sin, neg, sin)", r"3 results are returned, and .* 2 .*:\d+"),
        (r"return \(sin, neg\)", "return sin", r"must be a tuple of names: return \(name,\) .*:\d+: return sin"),
        (r"return \(sin, neg\)", "return", r"must be a tuple of names: .*:\d+: return"),
        (r"return \(sin, neg\)", "return (sin, (neg,))", r"must be a tuple of names: .*:\d+: return"),
        (r"return \(sin, neg\)", "pass", r"a line must read: name = operator\(arguments\) .*:\d+: pass"),
        # lines
        (LINE, r"\g<0>  # mine", r""),
        (LINE, "neg = ops.aten.neg.default(later)", r"'later' is not defined above this line .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default(neg)", r"'neg' is not defined above this line .*:\d+: neg = "),
        (LINE, "neg = ops.aten.ngg.default(c)", r"no operator ops.aten.ngg .*:\d+: neg = .*next: did you mean 'neg'"),
        (LINE, "neg = ops.aten.neg.default(c, c)", r"cannot read a line of the dump: .*neg.* .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default()", r"cannot read a line of the dump: .*neg.* .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default(c, wrong=1)", r"cannot read a line .*.*argument.* .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default(*c)", r"cannot read the argument \*c .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default(**{})", r"written out, without \*\* .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default(-c)", r"cannot read the argument -c .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default(device())", r"the argument device\(\) is a call .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default(device('mars'))", r"RuntimeError: .*mars .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default({[]: c})", r"cannot read the argument .*:\d+: neg = "),
        (LINE, "neg = ops.aten.neg.default(torch.nothing)", r"there is no operator torch.nothing .*:\d+: neg = "),
        (LINE, "neg = torch.__all__(c)", r"torch.__all__ is no operator of a graph .*:\d+: neg = "),
        (LINE, "neg = (lambda: c)()", r"is none of math, operator, ops, torch .*:\d+: neg = "),
        (LINE, "neg = c[0]", r"a line must read: .*:\d+: neg = "),
        (LINE, "neg, more = c", r"a line must read: .*:\d+: neg, more"),
        (LINE, "neg: int = ops.aten.neg.default(c)", r"a line must read: .*:\d+: neg: int"),
        (LINE, "print(c)", r"a line must read: .*:\d+: print"),
        (LINE, "ops = ops.aten.neg.default(c)", r"operators are called by 'ops', which .*:\d+: ops = "),
        (LINE, "neg = ops.aten.neg.default(c)  # f32[3]; @stepp", r"no stage 'stepp' .*:\d+: neg = .*did you mean"),
        (LINE, "neg = ops.aten.neg.default(c", r"not a readable dump: '\(' was never closed.*:\d+"),
        (LINE, "neg = " + "(" * 300 + ")" * 300, r"not a readable dump: .*:\d+"),
        (LINE, "neg = " + "-" * 100_000 + "3", r"not a readable dump: .*nested too deeply"),
        # subgraphs
        (r"= GRAPHS\['", "= GRAPHS['no", r"there is no function 'no.*:\d+: .* = GRAPHS"),
        (r"= GRAPHS\['\w+'\]", "= GRAPHS[3]", r"a line must read: .*:\d+: .* = GRAPHS"),
        (r"= GRAPHS\['\w+'\]", "= GRAPHS['program']", r"'program' would call itself .*:\d+: .* = GRAPHS"),
        (r"add = ops.aten.add", "add = ops.aten.ad", r"no operator ops.aten.ad\.?\w* .*:\d+: add ="),
        # everything
        (r"(?s).*", "", r"there is no function 'program'"),
        (r"(?s).*", "junk", r"there is no function 'program'"),
        (r"(?s).*", "this is no Python", r"not a readable dump: .*:1"),
        (r"(?s).*", "\0", r"not a readable dump: .*null"),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_be_read(old: str, new: str, expected: str, text: str, run: Run, tmp_path: Path) -> None:
    broken, whole = re.sub(old, new, text, count=1), tmp_path / "whole.py"
    assert broken != text
    file = tmp_path / "broken.py"
    file.write_text(broken, encoding="utf-8")
    whole.write_text(text, encoding="utf-8")
    result = run("diff", str(whole), str(file))
    assert result.exit_code == (2 if expected else 0), result.output
    if expected:
        said = " ".join(result.stderr.split())
        assert re.search(expected, said), said
        assert said.count("cannot read a line") <= 1 and "broken.py" in said and "0x" not in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\xff", "the dump cannot be read: 'utf-8' codec can't decode"),
        (b"", "there is no function 'program'"),
        (None, "o such file"),
    ],
    ids=["binary", "empty", "missing"],
)
def test_a_file_that_is_no_dump(content: bytes | None, expected: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "000_captured.py"
    if content is not None:
        file.write_bytes(content)
    for arguments in (("diff", str(file), str(file)), ("run", "emoji-unet", "--from", str(file))):
        result = run(*arguments)
        assert result.exit_code == 2
        assert expected in " ".join(result.stderr.split()) and "000_captured.py" in result.stderr
        assert "next:" in result.stderr


def test_comments_of_ones_own_say_nothing() -> None:
    plain = sketch("sin = ops.aten.sin.default(x)\nreturn (sin,)", x="f32[2]")
    own = """
        # here  it begins
        #:: nowhere  model.py:3
        sin = ops.aten.sin.default(x)  {}
        # and  here it ends
        return (sin,)
    """
    for comment in ("# a note; @request; by me", "# x[0] is large; @request", "#", "# two  spaces",
                    "# f32[2]  # @request", "# f32[2]; what?", "# f32[2]; by the way, large", "# step; @stepp",
                    "# 3; @request"):  # fmt: skip
        found = sketch(own.format(comment), x="f32[2]").program
        assert dump(found) == dump(plain.program), comment


def test_what_comments_say_survives_reformatting() -> None:
    text = """
        # :: block.0  my folder/model.py:3
        sin = ops.aten.sin.default(x)  # f32[2, 3]; @request; by hoist, tabulate  # why?

        add = ops.aten.add.Tensor(
            sin,  # the first
            sin,
        )  # f32[2, 3]; @schedule
        return (add,)
    """
    sin, add = sketch(text, x="f32[2, 3]").program.calls()
    assert (sin.meta["module"], sin.meta["source"]) == (add.meta["module"], add.meta["source"])
    assert (add.meta["module"], add.meta["source"]) == ("block.0", "my folder/model.py:3")
    assert (sin.meta["placement"], sin.meta["rules"]) == ({"condition"}, ("hoist", "tabulate"))
    assert add.meta["placement"] == {"time"} and "rules" not in add.meta


def test_a_missing_dump_suggests_that_of_its_pass(run: Run, tmp_path: Path) -> None:
    for name in ("000_captured.py", "010_share_repeats.py", "012_share_repeats.py", "018_hoist.py"):
        (tmp_path / name).write_text("")
    for name, expected in (
        ("007_hoist.py", "did you mean 018_hoist.py?"),
        ("009_share_repeats.py", "did you mean 010_share_repeats.py or 012_share_repeats.py?"),
        ("captured.py", "did you mean 000_captured.py?"),
        ("018_hiost.py", "did you mean '018_hoist.py'?"),
        ("unlike", "graphopt trace writes dumps"),
    ):
        file = str(tmp_path / name)
        for arguments in (("diff", file, file), ("run", "emoji-unet", "--from", file)):
            result = run(*arguments)
            assert result.exit_code == 2
            assert f"next: {expected}" in " ".join(result.stderr.split())
