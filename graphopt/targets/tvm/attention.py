"""softmax(scale · Q · Kᵀ + mask) · V on the CPU, in float32, without ever writing the scores to memory as a whole.

Queries lie in the lanes of vectors and keys in rows, of the scores as of the output: both matrix multiplications then
are `tile` with the queries as vectors, maxima and sums over keys need no step across lanes, and keys are read as they
are, without transposing. A task is a block of queries of one head; keys are taken block by block, with the running
maximum and sum of "Online normalizer calculation for softmax" (Milakov and Gimelshein, 2018, arXiv:1805.02867).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import TypeAlias

from tvm import tirx

from .emit import Buffer, Emitter, Expr, Kernel, kernel
from .isa import Isa
from .tile import tile, transposed

Index: TypeAlias = tuple[Expr, Expr, Expr, Expr]  # batch, head, row, channel
Load: TypeAlias = Callable[[Emitter, Sequence[Buffer], Index, int], Expr]
Store: TypeAlias = Callable[[Emitter, Sequence[Buffer], Index, Expr], None]

_LOWEST = -3.4028234663852886e38  # the least finite float32: less −∞ it is −∞, where −∞ − −∞ would be NaN
_PER_LN2 = 1 / log(2)
_KEYS = 48  # a block of keys is a multiple: of the rows of `Isa.tile` and of every number of lanes
_SCORES = 6144  # numbers in a block of scores: 24 KiB of the first cache
_PANELS = 4  # of queries per task at most, for which keys stay in the second cache
_TASKS = 16  # smaller problems are cut finer to have so many
_SLOT = 8  # numbers from one key's packed values to the next's, of which `Isa.tile` reads the first rows


@dataclass(frozen=True)
class Shape:
    """Sizes of Q (batch, heads, queries, depth), K (batch, kv_heads, keys, depth), V (batch, kv_heads, keys, values).

    Each head of keys and values serves `heads / kv_heads` consecutive heads of queries.
    """

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    depth: int
    values: int


@dataclass(frozen=True)
class Mask:
    """What is added to the scores: −∞ where a query must not see a key.

    Attributes
    ----------
    load : of (batch, head, query, key); for lanes > 1 of consecutive keys.
    per_query : whether it differs between queries. If not, it is read at query 0, once per key and not once per score.
    """

    load: Load
    per_query: bool = True


@dataclass(frozen=True)
class _Plan:
    """How the work is cut.

    Attributes
    ----------
    vectors : of queries in a panel; the last one may have fewer.
    panels : of queries in all.
    together : panels in one task.
    block : keys in one step.
    """

    isa: Isa
    shape: Shape
    vectors: int
    panels: int
    together: int
    block: int

    @property
    def width(self) -> int:
        """Queries in a panel."""
        return self.vectors * self.isa.lanes

    @property
    def last(self) -> int:
        """Vectors of the last panel."""
        return ceil(self.shape.queries / self.isa.lanes) - (self.panels - 1) * self.vectors

    @property
    def rows(self) -> int:
        """Rows of a tile: of keys for the scores, of channels for the output."""
        return self.isa.tile[0]

    @property
    def query_tasks(self) -> int:
        """Tasks per head."""
        return ceil(self.panels / self.together)

    @property
    def key_blocks(self) -> int:
        return ceil(self.shape.keys / self.block)

    @property
    def value_panels(self) -> int:
        return ceil(self.shape.values / self.rows)

    @property
    def value_start(self) -> int:
        """Where packed values begin in the workspace, after the packed keys."""
        shape = self.shape
        return shape.batch * shape.kv_heads * shape.keys * shape.depth

    @property
    def workspace(self) -> int:
        shape = self.shape
        return self.value_start + shape.batch * shape.kv_heads * self.value_panels * shape.keys * _SLOT


def kernels(
    name: str,
    isa: Isa,
    shape: Shape,
    *,
    scale: float,
    causal: bool,
    mask: Mask | None,
    arguments: Sequence[str],
    query: Load,
    key: Load,
    value: Load,
    store: Store,
) -> tuple[list[Kernel], int]:
    """The kernels to call in this order, and how many float32 numbers their workspace has.

    Both take pointers of the types `arguments` and, last, the workspace's. Loads and `store` get the buffers of
    `arguments`. A load returns float32 numbers of so many consecutive channels: of one, or of the CPU's lanes from a
    multiple of them on; `store` gets the same. Channels of a mask are keys. The heads of `key` and `value` are theirs.

    `causal` lets query i see the keys 0 to i. A query that sees no key, all its scores being −∞, gives 0, as torch's
    `scaled_dot_product_attention` does; softmax alone would give NaN.
    """
    plan = _plan(isa, shape)
    types = [*arguments, "float32"]
    blocks = shape.batch * shape.kv_heads * plan.key_blocks
    tasks = shape.batch * shape.heads * plan.query_tasks

    def pack(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        _pack(emitter, plan, buffers, task, key, value)

    def attend(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        _Attention(emitter, plan, buffers, scale, causal, mask).run(task, query, store)

    packing = kernel(f"{name}_pack", isa, types, blocks, pack)
    return [packing, kernel(name, isa, types, tasks, attend)], plan.workspace


def _plan(isa: Isa, shape: Shape) -> _Plan:
    """Panels of nearly equal width, blocks of keys of nearly equal size."""
    vectors = ceil(shape.queries / isa.lanes)
    panels = ceil(vectors / (isa.tile[1] // isa.lanes))
    vectors = ceil(vectors / panels)
    together = max(1, min(_PANELS, panels * shape.batch * shape.heads // _TASKS))
    most = _SCORES // (vectors * isa.lanes) // _KEYS * _KEYS
    block = ceil(shape.keys / ceil(shape.keys / most) / _KEYS) * _KEYS
    return _Plan(isa, shape, vectors, panels, together, block)


def _pack(emitter: Emitter, plan: _Plan, buffers: Sequence[Buffer], task: Expr, key: Load, value: Load) -> None:
    """A block of keys as (key, depth), and of values as (value panel, key, slot)."""
    shape, lanes = plan.shape, plan.isa.lanes
    *arguments, workspace = buffers
    both = emitter.let(task // plan.key_blocks, "both")
    batch = emitter.let(both // shape.kv_heads, "batch")
    head = emitter.let(both % shape.kv_heads, "head")
    start = emitter.let(task % plan.key_blocks * plan.block, "start")
    count = emitter.let(_least(plan.block, shape.keys - start), "count")

    with emitter.loop(count, "row") as row:
        at = emitter.let((both * shape.keys + start + row) * shape.depth, "at")
        for channel, width in _channels(emitter, shape.depth, lanes):
            emitter.store(workspace, at + channel, key(emitter, arguments, (batch, head, start + row, channel), width))

    padded = max(_multiple(shape.values, lanes), (plan.value_panels - 1) * plan.rows + _SLOT)
    rows = emitter.scratch(plan.block * padded, name="rows")
    with emitter.loop(count, "row") as row:
        for channel, width in _channels(emitter, shape.values, lanes):
            loaded = value(emitter, arguments, (batch, head, start + row, channel), width)
            emitter.store(rows, row * padded + channel, loaded)
    with emitter.loop(plan.value_panels, "panel") as panel:
        at = emitter.let(plan.value_start + ((both * plan.value_panels + panel) * shape.keys + start) * _SLOT, "at")
        with emitter.loop(count, "row") as row:
            slot = emitter.load(rows, row * padded + panel * plan.rows, _SLOT)
            emitter.store(workspace, at + row * _SLOT, slot)


class _Attention:
    """The task of some panels of queries; see `_Plan` for the words.

    Attributes
    ----------
    queries : scratch of (panel, depth, width): the task's queries, scaled.
    scores : scratch of (key, width), of a panel and a block of keys: also its exponentials.
    outputs : scratch of (panel, values, width): sums of exponentials times values.
    maxima, totals : scratch of (panel, width): of scores, and of exponentials, so far.
    """

    def __init__(
        self, emitter: Emitter, plan: _Plan, buffers: Sequence[Buffer], scale: float, causal: bool, mask: Mask | None
    ) -> None:
        self.emitter, self.plan, self.scale, self.causal, self.mask = emitter, plan, scale, causal, mask
        self.lanes, self.shape = plan.isa.lanes, plan.shape
        self.vectors = plan.vectors  # of the panel that code is emitted for
        *self.arguments, self.workspace = buffers
        together, width, shape = plan.together, plan.width, plan.shape
        self.queries = emitter.scratch(together * shape.depth * width, name="queries")
        self.scores = emitter.scratch(plan.block * width, name="scores")
        self.outputs = emitter.scratch(together * shape.values * width, name="outputs")
        self.maxima = emitter.scratch(together * width, name="maxima")
        self.totals = emitter.scratch(together * width, name="totals")

    def run(self, task: Expr, query: Load, store: Store) -> None:
        emitter, plan, shape = self.emitter, self.plan, self.shape
        both = emitter.let(task // plan.query_tasks, "both")
        self.batch = emitter.let(both // shape.heads, "batch")
        self.head = emitter.let(both % shape.heads, "head")
        group = shape.heads // shape.kv_heads
        self.kv = emitter.let(self.batch * shape.kv_heads + self.head // group, "kv")
        part = task % plan.query_tasks
        # The last queries see most keys: they go first, so that no thread begins with them when others end.
        part = plan.query_tasks - 1 - part if self.causal else part
        first = emitter.let(part * plan.together, "first")
        panels: Expr | int = plan.together
        if plan.panels % plan.together:
            panels = emitter.let(_least(plan.together, plan.panels - first), "panels")

        with emitter.loop(panels, "panel") as panel:
            for top in self._panel(first + panel):
                self._begin(panel, top, query)
        blocks: Expr | int = plan.key_blocks
        if self.causal and plan.key_blocks > 1:
            seen = _least(shape.keys, (first + panels) * plan.width)
            blocks = emitter.let((seen + plan.block - 1) // plan.block, "blocks")
        with emitter.loop(blocks, "block") as block, emitter.loop(panels, "panel") as panel:
            start = emitter.let(block * plan.block, "start")
            for top in self._panel(first + panel):
                self._step(panel, top, start)
        with emitter.loop(panels, "panel") as panel:
            for top in self._panel(first + panel):
                self._end(panel, top, store)

    def _panel(self, number: Expr) -> Iterator[Expr]:
        """The first query of a panel: once for all panels, or once for all but the last and once for that one."""
        emitter, plan = self.emitter, self.plan
        number = emitter.let(number, "number")
        first = emitter.let(number * plan.width, "query")
        if plan.last == plan.vectors:
            yield first
            return
        with emitter.when(number < plan.panels - 1):
            yield first
        self.vectors = plan.last
        with emitter.when(number == plan.panels - 1):
            yield first
        self.vectors = plan.vectors

    def _begin(self, panel: Expr, first: Expr, query: Load) -> None:
        """A panel's queries, transposed and scaled, and its sums before the first block.

        The scale makes e^x to 2^x, unless there is a mask: a finite number in it could overflow in other units.
        """
        emitter, plan, shape, lanes = self.emitter, self.plan, self.shape, self.lanes
        at = emitter.let(panel * shape.depth * plan.width, "at")
        scale = emitter.spread(self.scale if self.mask else self.scale * _PER_LN2, lanes)
        for vector in range(self.vectors):
            rows = self._rows(first + vector * lanes)
            for channel, width in _channels(emitter, shape.depth, lanes):
                loaded = [
                    emitter.let(query(emitter, self.arguments, (self.batch, self.head, row, channel), width))
                    for row in rows
                ]
                for column, values in enumerate(self._columns(loaded)):
                    place = at + (channel + column) * plan.width + vector * lanes
                    emitter.store(self.queries, place, values * scale)
            place = panel * plan.width + vector * lanes
            emitter.store(self.maxima, place, emitter.spread(_LOWEST, lanes))
            emitter.store(self.totals, place, emitter.spread(0.0, lanes))
        if plan.key_blocks > 1:
            with emitter.loop(shape.values * plan.vectors) as i:
                place = (panel * shape.values * plan.vectors + i) * lanes
                emitter.store(self.outputs, place, emitter.spread(0.0, lanes))

    def _step(self, panel: Expr, first: Expr, start: Expr) -> None:
        """A panel's sums with one block of keys more."""
        emitter, plan, keys = self.emitter, self.plan, self.shape.keys
        seen: Expr = tirx.const(keys, "int32")
        if self.causal:
            seen = _least(seen, (first + plan.width + plan.rows - 1) // plan.rows * plan.rows)
        count = emitter.let(_least(plan.block, seen - start), "count")
        if not self.causal or plan.key_blocks == 1:
            self._block(panel, first, start, count)
        else:
            with emitter.when(count > 0):
                self._block(panel, first, start, count)

    def _block(self, panel: Expr, first: Expr, start: Expr, count: Expr) -> None:
        emitter, plan, lanes, width = self.emitter, self.plan, self.lanes, self.plan.width
        before = [emitter.load(self.maxima, panel * width + i * lanes, lanes) for i in range(self.vectors)]
        latest = [emitter.register(maximum, "latest") for maximum in before]
        if self.mask and self.mask.per_query:
            self._masks(self.mask, first, start, count)
        with emitter.loop(count // plan.rows, "t") as t:
            self._scores(plan.rows, panel, first, start, t * plan.rows, latest)
        if rest := self.shape.keys % plan.rows:
            with emitter.when(start + count == self.shape.keys):
                self._scores(rest, panel, first, start, count - rest, latest)
        factors = self._exponentials(panel, count, [emitter.let(emitter.get(maximum)) for maximum in latest])
        with emitter.loop(self.shape.values // plan.rows, "t") as t:
            self._outputs(plan.rows, panel, start, count, t, factors)
        if rest := self.shape.values % plan.rows:
            self._outputs(rest, panel, start, count, tirx.const(self.shape.values // plan.rows, "int32"), factors)

    def _masks(self, mask: Mask, first: Expr, start: Expr, count: Expr) -> None:
        """The block's mask, transposed, to where its scores will be added."""
        emitter, plan, lanes = self.emitter, self.plan, self.lanes

        def copy(rows: Sequence[Expr], offset: Expr, width: int, vector: int) -> None:
            loaded = [
                emitter.let(mask.load(emitter, self.arguments, (self.batch, self.head, row, start + offset), width))
                for row in rows
            ]
            for column, values in enumerate(self._columns(loaded)):
                emitter.store(self.scores, (offset + column) * plan.width + vector * lanes, values)

        for vector in range(self.vectors):
            rows = self._rows(first + vector * lanes)
            with emitter.loop(count // lanes, "chunk") as chunk:
                copy(rows, chunk * lanes, lanes, vector)
            with emitter.loop(count % lanes, "left") as left:
                copy(rows, count // lanes * lanes + left, 1, vector)

    def _scores(self, rows: int, panel: Expr, first: Expr, start: Expr, offset: Expr, latest: Sequence[Buffer]) -> None:
        """Scores of some keys, which begin at `start + offset`, and the maxima with them."""
        emitter, plan, lanes, depth = self.emitter, self.plan, self.lanes, self.shape.depth
        key_at = emitter.let((self.kv * self.shape.keys + start + offset) * depth, "key_at")
        query_at = emitter.let(panel * depth * plan.width, "query_at")
        sums = tile(
            emitter,
            rows,
            self.vectors,
            depth,
            lambda row, k: emitter.load(self.workspace, key_at + row * depth + k),
            lambda k, vector: emitter.load(self.queries, query_at + k * plan.width + vector * lanes, lanes),
        )
        maxima = [emitter.get(maximum) for maximum in latest]
        for row in range(rows):
            key = emitter.let(start + offset + row, "key")
            added = None
            if self.mask and not self.mask.per_query:
                index = (self.batch, self.head, tirx.const(0, "int32"), key)
                added = emitter.let(emitter.spread(self.mask.load(emitter, self.arguments, index, 1), lanes))
            for vector in range(self.vectors):
                score, place = sums[row][vector], (offset + row) * plan.width + vector * lanes
                if self.mask and self.mask.per_query:
                    added = emitter.load(self.scores, place, lanes)
                if added is not None:
                    score = score + added
                if self.causal:
                    queries = tirx.Ramp(first + vector * lanes, 1, lanes)
                    sees = tirx.Broadcast(key, lanes) <= queries
                    score = tirx.Select(sees, score, emitter.spread(float("-inf"), lanes))
                score = emitter.let(score, "score")
                emitter.store(self.scores, place, score)
                maxima[vector] = emitter.let(tirx.Max(maxima[vector], score), "maximum")
        for register, maximum in zip(latest, maxima, strict=True):
            emitter.put(register, maximum)

    def _exponentials(self, panel: Expr, count: Expr, latest: Sequence[Expr]) -> list[Expr]:
        """exp(score − maximum) in place of the scores, and the factors that bring earlier sums to the new maxima."""
        emitter, plan, lanes = self.emitter, self.plan, self.lanes
        at = emitter.let(panel * plan.width, "at")
        sums, factors = [], []
        for vector, maximum in enumerate(latest):
            start, place = emitter.spread(0.0, lanes), at + vector * lanes
            if plan.key_blocks > 1:
                factors.append(emitter.let(self._power(emitter.load(self.maxima, place, lanes), maximum), "factor"))
                start = emitter.load(self.totals, place, lanes) * factors[-1]
                emitter.store(self.maxima, place, maximum)
            sums.append(emitter.register(start, "total"))
        with emitter.loop(count, "row") as row:
            for vector, total in enumerate(sums):
                place = row * plan.width + vector * lanes
                power = emitter.let(self._power(emitter.load(self.scores, place, lanes), latest[vector]), "power")
                emitter.store(self.scores, place, power)
                emitter.put(total, emitter.get(total) + power)
        for vector, total in enumerate(sums):
            emitter.store(self.totals, at + vector * lanes, emitter.get(total))
        return factors

    def _power(self, score: Expr, maximum: Expr) -> Expr:
        """exp(score − maximum). Scores are in units of ln 2 already where nothing is added to them: see `_begin`."""
        difference = score - maximum
        if self.mask:
            difference = difference * self.emitter.spread(_PER_LN2, self.lanes)
        return self.emitter.call("exp2_nonpositive", difference)

    def _outputs(self, rows: int, panel: Expr, start: Expr, count: Expr, t: Expr, factors: Sequence[Expr]) -> None:
        """Exponentials times values, of one panel of values, added to the sums so far."""
        emitter, plan, lanes, shape = self.emitter, self.plan, self.lanes, self.shape
        slots = (self.kv * plan.value_panels + t) * shape.keys + start
        value_at = emitter.let(plan.value_start + slots * _SLOT, "value_at")
        at = emitter.let((panel * shape.values + t * plan.rows) * plan.width, "at")
        sums = tile(
            emitter,
            rows,
            self.vectors,
            count,
            lambda row, k: emitter.load(self.workspace, value_at + k * _SLOT + row),
            lambda k, vector: emitter.load(self.scores, k * plan.width + vector * lanes, lanes),
        )
        for row in range(rows):
            for vector in range(self.vectors):
                place, total = at + row * plan.width + vector * lanes, sums[row][vector]
                if factors:
                    total = emitter.load(self.outputs, place, lanes) * factors[vector] + total
                emitter.store(self.outputs, place, total)

    def _end(self, panel: Expr, first: Expr, store: Store) -> None:
        """A panel's outputs: divided, transposed back and stored."""
        emitter, plan, lanes, shape = self.emitter, self.plan, self.lanes, self.shape
        zero, one = emitter.spread(0.0, lanes), emitter.spread(1.0, lanes)
        at = emitter.let(panel * shape.values * plan.width, "at")
        for vector in range(self.vectors):
            total = emitter.let(emitter.load(self.totals, panel * plan.width + vector * lanes, lanes), "total")
            factor = emitter.let(tirx.Select(total == zero, zero, one / total), "factor")
            for channel, width in _channels(emitter, shape.values, lanes):
                places = [at + (channel + row) * plan.width + vector * lanes for row in range(width)]
                columns = [emitter.let(emitter.load(self.outputs, place, lanes) * factor) for place in places]
                self._store(columns, first + vector * lanes, channel, store)

    def _store(self, columns: Sequence[Expr], first: Expr, channel: Expr, store: Store) -> None:
        """One column, or as many as lanes, of the output of consecutive queries."""
        emitter, lanes = self.emitter, self.lanes
        if len(columns) == 1:
            rows = [tirx.Shuffle([columns[0]], [tirx.const(lane, "int32")]) for lane in range(lanes)]
        else:
            rows = transposed(emitter, columns)
        for lane, row in enumerate(rows):
            index = (self.batch, self.head, first + lane, channel)
            if self.shape.queries % self.plan.width == 0:
                store(emitter, self.arguments, index, row)
            else:
                with emitter.when(first + lane < self.shape.queries):
                    store(emitter, self.arguments, index, row)

    def _rows(self, first: Expr) -> list[Expr]:
        """Queries from `first` on, one per lane; past the last one, the last."""
        rows = [first + lane for lane in range(self.lanes)]
        if self.shape.queries % self.plan.width:
            rows = [_least(row, self.shape.queries - 1) for row in rows]
        return [self.emitter.let(row, "query") for row in rows]

    def _columns(self, rows: Sequence[Expr]) -> list[Expr]:
        """Vectors of one number per row: one of numbers, or as many as lanes of vectors."""
        if rows[0].ty.dtype.lanes == 1:
            return [tirx.Shuffle(list(rows), [tirx.const(lane, "int32") for lane in range(len(rows))])]
        return transposed(self.emitter, rows)


def _channels(emitter: Emitter, count: int, lanes: int) -> Iterator[tuple[Expr, int]]:
    """Channels, and how many from there on to treat at once: a loop over whole vectors, and what is left singly."""
    if whole := count // lanes:
        with emitter.loop(whole, "c") as c:
            yield c * lanes, lanes
    if rest := count % lanes:
        with emitter.loop(rest, "c") as c:
            yield c + whole * lanes, 1


def _multiple(count: int, of: int) -> int:
    return ceil(count / of) * of


def _least(first: Expr | int, second: Expr | int) -> Expr:
    return tirx.Min(*(tirx.const(x, "int32") if isinstance(x, int) else x for x in (first, second)))
