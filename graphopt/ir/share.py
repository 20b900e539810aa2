"""Which operations to compute for one part of a repeated value only: the set that saves most, as a minimum cut.

Work is counted in bytes as in `graphopt.ir.price`. Computing one of k parts saves 1 - 1/k of an operation's FLOPs and
of what it reads of repeated arguments. Where readers outside need all parts, the value is copied: both what the copy
reads and what it writes count, since nothing fuses there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from graphopt.ir.cost import nbytes, node_cost
from graphopt.ir.effects import is_view
from graphopt.ir.layout import STRIDE_READERS
from graphopt.ir.program import Program, fake_mode, shape, val
from graphopt.ir.repeats import Known, Repeat, carriers, whole


def shares(
    program: Program, known: Known, flops_per_byte: float, dispatch_bytes: int
) -> Iterator[tuple[fx.Node, list[fx.Node], str]]:
    """For each group of repeated values: its first node, the nodes to compute one part of, else the reason why none.

    Parameters
    ----------
    known : what `graphopt.ir.repeats.repeats` found.
    flops_per_byte, dispatch_bytes : exchange rates, see `graphopt.ir.price`.
    """
    if not known:
        return
    rates = _Rates(known, flops_per_byte, dispatch_bytes)
    shared = rates.shared(program)
    for group in _groups(known):
        inside = [node for node in group if node in shared]
        if inside or len(group) > 1 or not is_view(group[0]):  # an expansion that nothing takes over costs nothing
            yield group[0], inside, "" if inside else rates.unpaid(group)


class _Rates:
    """What sharing saves and costs, in bytes."""

    def __init__(self, known: Known, flops_per_byte: float, dispatch_bytes: int) -> None:
        self.known, self.flops_per_byte, self.dispatch_bytes = known, flops_per_byte, dispatch_bytes

    def shared(self, program: Program) -> set[fx.Node]:
        """The nodes to compute one part of: of all sets closed under carried arguments, the least that saves most.

        An arc to a set's outside costs its capacity where it is cut: the work that a node outside does not save, the
        copy of a value inside that is read outside. Arcs run backwards, since the cut returned has the largest source
        side, and what saves nothing, such as a view, is to stay outside.
        """
        import networkx  # a tenth of a second, which most Programs do not need

        cut, readers = networkx.DiGraph(), _above_stride_readers(program)
        for node, repeat in self.known.items():
            gain = self.gain(node)
            cut.add_edge(node, "inside", capacity=max(0, gain))
            cut.add_edge("outside", node, capacity=max(0, -gain))
            for source in carriers(node, repeat):
                cut.add_edge(source, node)
            if isinstance(val(node), torch.Tensor) and not (node in readers and _restrides(program, node, repeat)):
                cut.add_edge(("copy", node), node, capacity=self.copy(node, repeat))
            else:
                cut.add_edge(("copy", node), node)
            for user in node.users:
                takes = user in self.known and node not in whole(user, self.known[user])
                cut.add_edge(user if takes else "outside", ("copy", node))
        return set(networkx.minimum_cut(cut, "outside", "inside")[1][1]) & self.known.keys()

    def gain(self, node: fx.Node) -> int:
        """Bytes whose moving takes as long as the work saved by computing one part of `node`."""
        repeat = self.known[node]
        if repeat.given:
            return self.copy(node, repeat)  # the repetition itself, which stands in the graph already
        sources = carriers(node, repeat)
        expansions = sum(self.known[source].count != repeat.count for source in sources)
        moved = sum(nbytes(val(source)) for source in sources) if sources else nbytes(val(node))
        work = 0.0 if is_view(node) else moved + node_cost(node).flops / self.flops_per_byte
        return int(work * (1 - 1 / repeat.count)) - expansions * self.dispatch_bytes

    def copy(self, node: fx.Node, repeat: Repeat) -> int:
        """Bytes moved to repeat one part for readers outside; an expansion moves none, but is a call."""
        copied = 0 if expands(node, repeat) else nbytes(val(node)) + nbytes(repeat.value)
        return int(copied) + self.dispatch_bytes

    def unpaid(self, group: list[fx.Node]) -> str:
        saved = sum(max(0, self.gain(node)) for node in group if self.known[node].carried)
        if not saved:
            return "no operation that reads it can be done for one part alone"
        return f"sharing saves at most the work of moving {saved} bytes, less than copies for those outside cost"


def expands(node: fx.Node, repeat: Repeat) -> bool:
    """Whether an expansion of one part, a view, will do as the whole; a result has memory of its own."""
    one = isinstance(repeat.value, torch.Tensor) and repeat.value.shape[repeat.dim] == 1
    return one and all(user.op != "output" for user in node.users)


def _groups(known: Known) -> list[list[fx.Node]]:
    """Repeated nodes that take over parts from one another, directly or not, in graph order."""
    import networkx

    web = networkx.Graph()
    web.add_nodes_from(known)
    web.add_edges_from((source, node) for node, repeat in known.items() for source in carriers(node, repeat))
    return sorted(sorted(group) for group in networkx.connected_components(web))


def _above_stride_readers(program: Program) -> set[fx.Node]:
    """Nodes on whose strides an operation that reads strides may depend."""
    found: set[fx.Node] = set()
    for node in reversed(program.nodes):
        if node.target in STRIDE_READERS or any(user in found for user in node.users):
            found.add(node)
    return found


def _restrides(program: Program, node: fx.Node, repeat: Repeat) -> bool:
    """Whether the repetition of one part would have other strides than the value now has."""
    with fake_mode(program.graph), torch.no_grad():
        one = repeat.value
        new = one.expand(shape(node)) if expands(node, repeat) else torch.cat([one] * repeat.count, repeat.dim)
    return bool(new.stride() != val(node).stride())
