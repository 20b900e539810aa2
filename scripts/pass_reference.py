"""Writes docs/passes.md, the reference of the passes, from what the passes say of themselves.

    python scripts/pass_reference.py             write it
    python scripts/pass_reference.py --check     exit with status 1 where it is not up to date
    python scripts/pass_reference.py --measure   count anew what each pass saves, then write it (three minutes)

Equation, where, because and example are the docstring's, options the dataclass's; reasons for holding back are read
from the source, and reasons for a pass's place from graphopt/pipelines.py. What a pass saved is in
docs/measured/passes.json (`benchmarks.redundancy`: counted, not timed). Whatever else there is to say of a pass
stands in docs/pass_notes/.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a file, it takes graphopt and benchmarks from this checkout

from graphopt import pipelines  # noqa: E402
from graphopt.ir.rewrite import Pass, pass_name  # noqa: E402
from graphopt.passes import PASSES  # noqa: E402

PAGE, NOTES, MEASURED = ROOT / "docs/passes.md", ROOT / "docs/pass_notes", ROOT / "docs/measured/passes.json"
BUNDLED = ("emoji-unet", "emoji-dit")

HEAD = """\
<!-- Written by scripts/pass_reference.py: change docstrings, docs/pass_notes/ or the script, and run it again. -->

# Passes

One section per pass, in alphabetical order. A pass is one file of `graphopt/passes/`; its docstring holds the equation
as a doctest, its fields are the options that the command line spells `hoist{max_bytes=1000000}`. *Bitwise* passes
change no bit of any result; *rounding* ones reorder sums. Where a pass does not fire, it says why; `…` in these reasons
stands for what differs from place to place. [Writing a pass](writing_a_pass.md) builds one.

What a pass saved is counted, not timed (`python scripts/pass_reference.py --measure`): FLOPs and bytes moved of one
call of the denoiser, in the order of the pipeline `exact`, as shares of the call as captured. Work that is *placed*
elsewhere (once per set of weights, request or timestep) counts as saved. Zeros are shown for the pipelines that ship
with graphopt; other models, whose architecture is the namesake's at a smaller width, are listed where the pass fired.
"""


def reference(measured: dict[str, Any], notes: Path = NOTES, passes: Sequence[type[Pass]] = PASSES) -> str:
    """The whole page."""
    ordered = sorted(passes, key=pass_name)
    rows = ["| pass | accuracy | |", "|---|---|---|"]
    for cls in ordered:
        title = _cell(_parts(cls)["title"])
        rows.append(f"| [`{pass_name(cls)}`](#{pass_name(cls)}) | {cls.accuracy} | {title} |")
    return "\n".join([HEAD, *rows, "", *("\n".join(section(cls, measured, notes)) for cls in ordered)]).rstrip() + "\n"


def section(cls: type[Pass], measured: dict[str, Any], notes: Path) -> Iterator[str]:
    """The lines of one pass."""
    name, parts = pass_name(cls), _parts(cls)
    yield from (f"## {name}", "", parts["title"], "", f"**Accuracy**: {cls.accuracy}.", "")
    for key in ("where", "because"):
        if key in parts:
            yield from (*textwrap.wrap(f"**{key.capitalize()}**: {parts[key]}", 120, break_on_hyphens=False), "")
    extra = notes / f"{name}.md"
    if extra.exists():
        text = extra.read_text(encoding="utf-8").strip()
        yield from (text.replace("](../passes.md#", "](#").replace("](../", "]("), "")
    if cls.exploits:
        names = ", ".join(f"`{kind.__name__}`" for kind in cls.exploits)
        yield from (f"**Relations it exploits**: {names} ([the loop](loop.md#relations)).", "")
    if options := list(_options(cls)):
        yield from ("| option | default | |", "|---|---|---|", *options, "")
    if reasons := refusals(cls):
        yield from ("**Holds back because**", "", *(f"- {reason}" for reason in reasons), "")
    if places := list(_places(cls)):
        yield from (*textwrap.wrap(f"**Place**: {'; '.join(places)}.", 120, break_on_hyphens=False), "")
    yield from ("```python", *parts["example"].splitlines(), "```", "")
    yield from _savings(name, measured)
    yield ""


def _parts(cls: type[Pass]) -> dict[str, str]:
    """Title, where, because and example of a pass's docstring, in Markdown."""
    text = inspect.getdoc(sys.modules[cls.__module__]) or ""
    prose, _, example = text.partition("\n>>> ")
    title, *rest = re.split(r"\n(?=\w+:)|\n\n", prose.strip())
    parts = {"title": _plain(title), "example": ">>> " + example.strip()}
    for item in rest:
        key, _, body = item.partition(":")
        parts[key] = _plain(body)
    return parts


def _plain(text: str) -> str:
    """A paragraph of a docstring in Markdown: one line, code in single marks."""
    return " ".join(text.split()).replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _options(cls: type[Pass]) -> Iterator[str]:
    """A row per field, with what the docstring's Attributes say of it."""
    said: dict[str, str] = {}
    _, _, listed = (inspect.getdoc(cls) or "").partition("----------\n")
    for entry in re.split(r"\n(?=\w)", listed):
        names, _, text = entry.partition(" : ")
        said |= {name.strip(): _plain(text) for name in names.split(",")}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        yield f"| `{field.name}` | `{field.default!r}` | {_cell(said.get(field.name, ''))} |"


def _places(cls: type[Pass]) -> Iterator[str]:
    """The reasons for a pass's place in the pipelines, then the pipelines that it is in."""
    lines = inspect.getsource(pipelines).splitlines()
    for line in lines:
        if match := re.match(rf"\s+{cls.__name__}\([^#]*\),  # (.*)", line):
            yield _plain(match[1])
    named = [f"`{name}`" for name, order in pipelines.PIPELINES.items() if any(isinstance(p, cls) for p in order)]
    yield f"in {', '.join(named)}" if named else "in no pipeline"


def refusals(cls: type[Pass]) -> list[str]:
    """The reasons that a pass gives for holding back, in the order of its source, as far as it writes them out."""
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    found = dict.fromkeys(_reasons(tree))
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.level:
            module = importlib.import_module(
                "." * statement.level + (statement.module or ""), cls.__module__.rpartition(".")[0]
            )
            for alias in statement.names:
                if inspect.isfunction(helper := getattr(module, alias.name)):
                    source = ast.parse(textwrap.dedent(inspect.getsource(helper)))
                    found |= dict.fromkeys(_reasons(source))
    return list(found)


def _reasons(tree: ast.AST) -> Iterator[str]:
    for node in sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refusal":
            yield from _texts(node.args[0])
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "reason":
            yield from _texts(node.value)
        elif isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) in ("str", "str | None"):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value:
                    yield from _texts(inner.value)


def _texts(node: ast.expr) -> Iterator[str]:
    """What an expression may say, with … for what is computed; nothing for what is no sentence."""
    match node:
        case ast.Constant(value=str(text)):
            found = text
        case ast.JoinedStr(values=parts):
            found = "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in parts)
        case ast.IfExp(body=body, orelse=orelse):
            yield from (*_texts(body), *_texts(orelse))
            return
        case ast.BoolOp(values=parts):
            yield from (text for part in parts for text in _texts(part))
            return
        case _:
            return
    if len(found.split()) > 2:
        yield found


# -- what it saved ---------------------------------------------------------------------------------------------------


def _savings(name: str, measured: dict[str, Any]) -> Iterator[str]:
    """A table of what a pass saved, or a sentence where it was not measured."""
    rows = []
    for model, modules in measured.items():
        for module, entry in modules.items():
            ran = [row for row in entry["passes"] if re.match(r"\w+", row["name"])[0] == name]  # type: ignore[index]
            fired = sum(row["fired"] for row in ran)
            if ran and (fired or model in BUNDLED):
                saved = (_saved(ran, entry["before"], key) for key in ("flops", "bytes"))
                nodes = sum(row["after"]["nodes"] - row["before"]["nodes"] for row in ran)
                rows.append(f"| {model}, {module} | {fired} | {_signed(nodes)} | {' | '.join(saved)} |")
    if rows:
        yield from ("| one call | fired | nodes | FLOPs | bytes moved |", "|---|---|---|---|---|", *rows)
    elif any(pass_.name == name for pass_ in pipelines.exact):
        yield "What it saves was not measured yet."
    else:
        yield "What it saves was not measured: it is not in the pipeline `exact`."


def _saved(ran: list[dict[str, Any]], whole: dict[str, Any], key: str) -> str:
    change = sum(row["after"][key] - row["before"][key] for row in ran)
    return f"{change / whole[key]:+.2%}".replace("-", "−").replace("%", " %") if change else "0"


def _signed(number: int) -> str:
    return f"{number:+}".replace("-", "−") if number else "0"


def measure() -> dict[str, Any]:
    """Count what each pass of the pipeline `exact` does to each denoiser of the benchmarks."""
    import warnings

    import diffusers

    from benchmarks.pipelines import FULL, diffusers_pipelines
    from benchmarks.redundancy import of_pipeline

    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    found: dict[str, Any] = {}
    for name, entry in diffusers_pipelines(FULL).items():
        print(name, file=sys.stderr, flush=True)
        found[name] = {}
        for counts in of_pipeline(entry):
            plain = dataclasses.asdict(counts)
            found[name][counts.module] = {"before": plain["before"], "passes": plain["passes"]}
    return found


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--measure", action="store_true", help="count anew first")
    options = parser.parse_args()
    if options.measure:
        MEASURED.parent.mkdir(exist_ok=True)
        MEASURED.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    page = reference(measured)
    if options.check:
        if PAGE.read_text(encoding="utf-8") == page:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is not up to date: run python scripts/pass_reference.py")
        return 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
