"""A Program, or what a pass did to one, as a picture by Graphviz.

Boxes are coloured by the stage that computes them and lie in frames, one per submodule. A submodule deeper than asked
for is one box that counts its operators and their cost; views and entries of several results are no boxes but part of
the edges, and weights are left out. A small picture flows from top to bottom; in a large one every outermost submodule
is a column, in the order of computation, so that a whole network fits a screen. The text depends on nothing but the
Program.
"""

from __future__ import annotations

import importlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal, TypeAlias, get_args

from torch import fx

from graphopt.debug.diff import KINDS, MARKS, Change, difference
from graphopt.debug.figures import scaled
from graphopt.debug.history import Compilation, Snapshot
from graphopt.debug.viz.fold import (
    Box,
    Picture,
    by_stage,
    check_stage,
    chosen,
    columns,
    cost_of,
    fold,
    is_plumbing,
    operator_name,
    stage_of,
)  # fmt: skip
from graphopt.debug.viz.palette import COLOURS, tint
from graphopt.errors import UsageError, nearest
from graphopt.ir.cost import StageCost, nbytes, stage_costs
from graphopt.ir.printer import describe
from graphopt.ir.program import Program, val

Format: TypeAlias = Literal["dot", "svg", "png"]
FORMATS: tuple[str, ...] = get_args(Format)

_FLOWING = 24  # boxes up to which a picture flows from top to bottom
_INK, _PALE = "#222222", "#8a8a8a"


def picture(source: Compilation | Program, *, format: str = "svg", dpi: int | None = None, **options: Any) -> bytes:
    """The picture as a file: `dot` text in UTF-8, or drawn by Graphviz's program ``dot``.

    Parameters
    ----------
    format : ``dot`` (needs nothing), ``svg`` or ``png``.
    dpi : pixels per inch of a ``png``; 96 where not given.
    options : of `dot`.

    Raises
    ------
    UsageError : an unknown format, or Graphviz is not installed, with what to install.
    """
    if format not in FORMATS:
        raise UsageError(f"there is no format '{format}' of pictures", where="format", hint=nearest(format, FORMATS))
    text = dot(source, **options)
    if format == "dot":
        return text.encode()
    return draw(text, format, dpi or 96)


def available(format: str) -> None:
    """Raise UsageError where Graphviz, which draws `format`, is not installed."""
    hint = "or ask for the format dot, which needs neither"
    try:
        importlib.import_module("graphviz")
    except ImportError:
        what = f"{format} needs the Python package graphviz"
        raise UsageError(what, where="format", hint=f"pip install 'graphopt[viz]', {hint}") from None
    if shutil.which("dot") is None:
        what = f"{format} is drawn by Graphviz's program dot, which was not found"
        raise UsageError(what, where="format", hint=f"apt install graphviz, or https://graphviz.org; {hint}")


def draw(text: str, format: str, dpi: int = 96) -> bytes:
    """A text in Graphviz's language, drawn. Raises UsageError where Graphviz is not installed."""
    available(format)
    import graphviz

    if format == "png":
        text = text.replace("digraph graphopt {", f"digraph graphopt {{\n  dpi={dpi}", 1)
    drawn: bytes = graphviz.Source(text).pipe(format=format)
    return drawn


def dot(
    source: Compilation | Program, *, stage: str | None = None, after: str | int | None = None, depth: int = 2,
    compare: bool = False, views: bool = False,
) -> str:  # fmt: skip
    """The picture as text in Graphviz's language.

    Parameters
    ----------
    source : a Compilation, or a Program as it is.
    stage : show this one only, and what it takes from others as one box each.
    after : the pass after which to look: its name, its number (for one that runs twice) or both (``018_hoist``); the
        last pass where not given.
    depth : levels of submodules to tell apart; what lies deeper is folded. 0 folds nothing.
    compare : the Program before the pass and after it, with what it removed, added, moved to another stage or changed.
        Submodules in which nothing changed are folded into one box.
    views : show views, entries of several results and checks of shapes as boxes, too.

    Raises
    ------
    UsageError : no such stage or pass; nothing to compare with; a negative depth.
    """
    check_stage(stage)
    if depth < 0:
        raise UsageError(f"the depth is {depth}", where="depth", hint="levels of submodules: 0 or more")
    if isinstance(source, Program):
        if after is not None or compare:
            hint = "give the Compilation that a History has kept"
            raise UsageError("a Program does not know its passes", where="after" if after else "compare", hint=hint)
        return _document([_Side(source, "", fold(source, depth, stage=stage, views=views), {})], source.name)
    snapshot = chosen(source, after)
    if not compare:
        drawn = fold(snapshot.program, depth, stage=stage, views=views)
        return _document([_Side(snapshot.program, "", drawn, {})], f"{source.name}, {_state(snapshot)}")
    if snapshot.number == 0:
        raise UsageError("there is nothing before the captured program", where="compare", hint="name a pass")
    before, after_ = source.snapshots[snapshot.number - 1].program, snapshot.program
    found = difference(before, after_)
    sides = []
    for program, name, kinds in ((before, "before", ("removed", "moved", "changed")),
                                 (after_, "after", ("added", "moved", "changed"))):  # fmt: skip
        names = {} if name == "before" else found.renamed
        marks = {
            change.node if change.kind == "added" else names.get(change.node, change.node): change
            for change in found.changes
            if change.kind in kinds
        }
        shown = [node for node, change in marks.items() if change.kind in ("removed", "added")]
        drawn = fold(program, depth, stage=stage, views=views, shown=shown, marked=marks)
        sides.append(_Side(program, f"{name} {snapshot.name}", drawn, marks))
    counts = [_counted(found.of(kind), sides) for kind in KINDS if found.counts[kind]]
    return _document(sides, f"{source.name}, {snapshot.name}: {', '.join(counts) or 'nothing changed'}")


@dataclass
class _Side:
    """One Program of the picture, and the changes to mark in it by the names of its nodes."""

    program: Program
    title: str
    picture: Picture
    marks: Mapping[str, Change]


def _counted(changes: list[Change], sides: list[_Side]) -> str:
    """``→ 44 moved (43 of them views)``: what is part of an edge has no box that could be marked."""
    kind = changes[0].kind
    plumbing = {node.name for node in sides[kind == "added"].program.calls() if is_plumbing(node)}
    views = sum(change.node in plumbing for change in changes)
    some = f" ({views} of them views)" if 0 < views < len(changes) else " (all of them views)" if views else ""
    return f"{MARKS[kind]} {len(changes)} {kind}{some}"


def _state(snapshot: Snapshot) -> str:
    return "as captured" if snapshot.number == 0 else f"after {snapshot.name} (pass {snapshot.number})"


# -- text ------------------------------------------------------------------------------------------------------------


def _document(sides: list[_Side], title: str) -> str:
    flows = all(len(side.picture.boxes) <= _FLOWING for side in sides)
    lines = [
        "digraph graphopt {",
        '  graph [fontname="Helvetica,Arial,sans-serif" fontsize=14 labelloc=t labeljust=l rankdir='
        + ("TB " if flows else "LR ")
        + f"nodesep=0.12 ranksep={0.3 if flows else 0.4} bgcolor=white pad=0.2 tooltip={_quoted(title)}]",
        f'  node [fontname="Helvetica,Arial,sans-serif" fontsize=11 fontcolor="{_INK}" shape=plain]',
        f'  edge [fontname="Helvetica,Arial,sans-serif" fontsize=9 fontcolor="{_PALE}" color="#555555" arrowsize=0.6]',
        f"  label=<{_heading(title, sides)}>",
    ]
    # From left to right, Graphviz puts what comes first at the bottom.
    for number, side in list(enumerate(sides))[:: 1 if flows else -1]:
        drawn = _Drawn(side, f"{number}." if len(sides) > 1 else "", flows)
        body = [*drawn.flowing()] if flows else [*drawn.in_columns()]
        if side.title:
            frame = f'label=<<b>{escape(side.title)}</b>> color="{_PALE}" style=dashed margin=12'
            body = [f'  subgraph "cluster {number}" {{', f"    {frame}", *("  " + line for line in body), "  }"]
        lines += [*body, *drawn.edges()]
    return "\n".join([*lines, "}"]) + "\n"


def _heading(title: str, sides: list[_Side]) -> str:
    """Title and legend: the stages there are, with what each one holds, before and after where two are shown."""
    costs = [stage_costs(side.program) for side in sides]
    rows = [f'<tr><td colspan="4" align="left"><font point-size="16"><b>{escape(title)}</b></font></td></tr>']
    used = {stage_of(side.program, node) for side in sides for box in side.picture.boxes for node in box.nodes}
    for name, colour in COLOURS.items():
        if name in used:
            cells = [f'<td align="left">{_both(text, name, costs)}</td>' for text in (_count, _flops, _bytes)]
            swatch = f'<td align="left" bgcolor="{tint(colour)}" color="{colour}" border="2">  {_stage(name)}  </td>'
            rows.append(f"<tr>{swatch}{''.join(cells)}</tr>")
    return f'<table border="0" cellborder="0" cellspacing="3" cellpadding="2">{"".join(rows)}</table>'


def _stage(name: str) -> str:
    return name.replace("_", " × ")


def _count(cost: StageCost) -> str:
    return f"{cost.nodes} nodes"


def _flops(cost: StageCost) -> str:
    return scaled(cost.cost.flops, "FLOP")


def _bytes(cost: StageCost) -> str:
    return f"{scaled(cost.cost.bytes, 'B')} moved"


def _both(text: Any, stage: str, costs: list[dict[str, StageCost]]) -> str:
    """A figure of a stage on all sides; nothing where it is empty (a stage may have inputs alone)."""
    if not any(cost[stage].nodes for cost in costs):
        return ""
    return " → ".join(dict.fromkeys(text(cost[stage]) for cost in costs))


class _Drawn:
    """The lines of one side."""

    def __init__(self, side: _Side, prefix: str, flows: bool) -> None:
        self.side, self.prefix, self.flows = side, prefix, flows
        self.columns = list(_stacked(columns(side.program, side.picture.boxes)))
        self.place = {
            box.name: (number, row) for number, (_, some) in enumerate(self.columns) for row, box in enumerate(some)
        }

    def flowing(self) -> Iterator[str]:
        """Boxes in frames, one per submodule, as deep as they go."""
        yield from self._framed(self.side.picture.boxes, 0, "  ")

    def in_columns(self) -> Iterator[str]:
        """A node per outermost submodule, its boxes below one another, the nodes from left to right.

        Frames around nodes would do, if `dot` kept the order of what is inside.
        """
        joined = {ends for ends in self.side.picture.edges if self._is_next(*ends)}
        for number, (name, boxes) in enumerate(self.columns):
            rows = [f'<tr><td><font color="#555555" point-size="12">{escape(name)}</font></td></tr>'] if name else []
            for row, box in enumerate(boxes):
                if row and (boxes[row - 1].name, box.name) in joined:
                    rows.append('<tr><td cellpadding="0"><font color="#555555" point-size="9">↓</font></td></tr>')
                table = self._table(box, len(box.inside[:1]) if name else 0)
                rows.append(f'<tr><td port="{row}" cellpadding="2">{table}</td></tr>')
            frame = 'border="1" color="#cccccc" style="rounded"' if name else 'border="0"'
            table = f'<table {frame} cellborder="0" cellspacing="0" cellpadding="3">{"".join(rows)}</table>'
            yield f"  {self._column(number)} [label=<{table}> tooltip={_quoted(name or ' ')}]"
        for number in range(len(self.columns) - 1):
            yield f"  {self._column(number)} -> {self._column(number + 1)} [style=invis weight=0]"

    def _column(self, number: int) -> str:
        return _quoted(f"{self.prefix}column {number}")

    def _is_next(self, source: str, target: str) -> bool:
        """Whether a box stands right below the other in a column: the arrow between them is part of the column."""
        (left, upper), (right, lower) = self.place[source], self.place[target]
        return left == right and lower == upper + 1

    def _framed(self, boxes: list[Box], level: int, indent: str) -> Iterator[str]:
        inner: dict[str, list[Box]] = {}
        for box in boxes:
            if len(box.inside) > level:
                inner.setdefault(box.inside[level], []).append(box)
            else:
                yield self._box(box, indent, level)
        for name, some in inner.items():
            if len(some) == 1:
                yield self._box(some[0], indent, level)
                continue
            where = "/".join((*some[0].inside[:level], name))
            yield f"{indent}subgraph {_quoted(f'cluster {self.prefix}{where}')} {{"
            yield f"{indent}  {_frame(name)}"
            yield from self._framed(some, level + 1, f"{indent}  ")
            yield f"{indent}}}"

    def edges(self) -> Iterator[str]:
        for (source, target), edge in self.side.picture.edges.items():
            options = []
            if edge.values > 1:
                options.append(f'penwidth={min(1 + edge.values / 4, 4):g} tooltip="{edge.values} values"')
            if self.flows:
                if edge.views and edge.values == 1:
                    options.append(f"label={_quoted(chr(10).join(edge.views))}")
                yield f"  {self._id(source)} -> {self._id(target)}{_options(options)}"
            elif not self._is_next(source, target):
                (left, upper), (right, lower) = self.place[source], self.place[target]
                options.append('color="#00000060"')
                options += ["constraint=false"] * (right <= left)
                start, end = ("w", "w") if left == right else ("e", "w")
                ends = f"{self._column(left)}:{upper}:{start} -> {self._column(right)}:{lower}:{end}"
                yield f"  {ends}{_options(options)}"

    def _id(self, name: str) -> str:
        return _quoted(self.prefix + name)

    # -- boxes --

    def _box(self, box: Box, indent: str, level: int) -> str:
        return f"{indent}{self._id(box.name)} [label=<{self._table(box, level)}> tooltip={_quoted(_tip(box))}]"

    def _table(self, box: Box, level: int) -> str:
        """A box in frames down to some level; deeper submodules are part of its title."""
        changes = [self.side.marks[node.name] for node in box.nodes if node.name in self.side.marks]
        rows = [f'<tr><td align="left"><b>{escape(self._title(box, level))}</b></td></tr>']
        rows += _figures(box.nodes[0]) if _is_one(box) else self._stages(box)
        rows += [f'<tr><td align="left"><b>{escape(_marked(box, changes))}</b></td></tr>'] if changes else []
        kinds = {change.kind for change in changes}
        stages = by_stage(self.side.program, box.nodes)
        colour = COLOURS[next(iter(stages))] if len(stages) == 1 else _PALE
        fill = tint(colour) if len(stages) == 1 else "#f4f4f4"
        gone = _is_one(box) and "removed" in kinds
        border = 3 if kinds - {"changed"} and not gone else 1
        style = "rounded,dashed" if box.kind == "stage" or gone else "rounded"
        return (
            f'<table border="{border}" cellborder="0" cellspacing="0" cellpadding="2" color="{colour}" '
            f'bgcolor="{fill}" style="{style}">{"".join(rows)}</table>'
        )

    def _title(self, box: Box, level: int) -> str:
        node = box.nodes[0]
        if box.kind == "stage":
            return f"from {_stage(stage_of(self.side.program, node))}"
        name = operator_name(node) if node.op == "call_function" else node.name
        path = " / ".join(box.path[level:])
        return ": ".join(filter(None, (path, name if _is_one(box) else "")))

    def _stages(self, box: Box) -> list[str]:
        """A row per stage that computes part of a submodule; or what is taken from another stage, in one row."""
        if box.kind == "stage":
            size = scaled(sum(nbytes(val(node)) for node in box.nodes), "B")
            return [_small(f"{len(box.nodes)} value{'s' * (len(box.nodes) != 1)}, {size}")]
        rows = []
        for name, nodes in (stages := by_stage(self.side.program, box.nodes)).items():
            text = f"{len(nodes)} op{'s' * (len(nodes) != 1)}, {scaled(cost_of(nodes).flops, 'FLOP')}"
            rows.append(_small(text, tint(COLOURS[name]) if len(stages) > 1 else ""))
        return rows


def _is_one(box: Box) -> bool:
    return box.kind != "stage" and len(box.nodes) == 1


def _figures(node: fx.Node) -> list[str]:
    """Shape and cost of an operator."""
    cost = cost_of([node])
    rows = [] if node.op == "output" else [_small(describe(node.meta.get("val")))]
    return rows + ([_small(f"{scaled(cost.flops, 'FLOP')}, {scaled(cost.bytes, 'B')}")] if cost.bytes else [])


def _marked(box: Box, changes: list[Change]) -> str:
    """What a pass did to a box, in words: colours and lines alone would not tell everybody."""
    if _is_one(box):
        (change,) = changes
        moved = f" from {_stage(change.stages[0])} to {_stage(change.stages[1])}" if change.kind == "moved" else ""
        return f"{MARKS[change.kind]} {change.kind}{moved}"
    counts = Counter(change.kind for change in changes)
    return ", ".join(f"{MARKS[kind]} {counts[kind]} {kind}" for kind in KINDS if counts[kind])


def _tip(box: Box) -> str:
    """What a pointer shows: where the box comes from."""
    if box.kind == "module":
        return f"{'.'.join(box.path)}: {', '.join(dict.fromkeys(map(operator_name, box.nodes)))}"
    node = box.nodes[0]
    return "  ".join(filter(None, (node.name, node.meta.get("module", ""), node.meta.get("source", ""))))


def _stacked(found: Mapping[str, list[Box]]) -> Iterator[tuple[str, list[Box]]]:
    """Columns with the names of their frames; those of one box are put together where they follow one another."""
    run: list[Box] = []
    for name, boxes in found.items():
        framed = name.strip() == name and len(boxes) > 1
        if run and (framed or name == " inputs"):
            yield "", run
            run = []
        if framed:
            yield name, boxes
        elif name == " inputs":
            yield "", boxes
        else:
            run += boxes
    if run:
        yield "", run


def _frame(name: str) -> str:
    return f'label={_quoted(name)} color="#cccccc" fontcolor="#555555" fontsize=12 margin=6 style=rounded'


def _small(text: str, fill: str = "") -> str:
    colour = f' bgcolor="{fill}"' if fill else ""
    return f'<tr><td align="left"{colour}><font point-size="10">{escape(text)}</font></td></tr>'


def _options(options: list[str]) -> str:
    return f" [{' '.join(options)}]" if options else ""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
