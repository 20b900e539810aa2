"""What a pass is, find → legal → rewrite, and what an `Observer` sees of passes at work.

A pass is a frozen dataclass with three methods. `graphopt.ir.driver` owns everything else: it copies the Program before
a pass touches it, asks `legal` about each match, runs until nothing is left to do, has the result verified, and tells
one `Observer` about all of it. Passes never print, time or dump.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from torch import fx

from graphopt.errors import GraphoptError, PassError, UsageError, nearest
from graphopt.ir.effects import has_effect
from graphopt.ir.program import Program
from graphopt.ir.stages import Part

Accuracy: TypeAlias = Literal["bitwise", "rounding", "lossy"]


@dataclass(frozen=True)
class Refusal:
    """Why a pass did not fire at a node."""

    reason: str
    node: fx.Node


@dataclass(frozen=True)
class Match:
    """A place where a pass could fire.

    Attributes
    ----------
    root : the node that names the place in reports.
    nodes : all nodes the rewrite relies on; when one of them is gone, the match is void.
    captures : whatever `find` wants to hand to `legal` and `rewrite`.
    """

    root: fx.Node
    nodes: tuple[fx.Node, ...] = ()
    captures: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.captures[name]

    @property
    def alive(self) -> bool:
        return not any(node._erased for node in (self.root, *self.nodes))


# What a pass class says about itself, by type.
_ABOUT = {
    "accuracy": "Accuracy",
    "requires": "tuple[str, ...]",
    "ensures": "tuple[str, ...]",
    "repeat": "bool",
    "exploits": "tuple[type, ...]",
    "spreads": "bool",
}


class Pass(ABC):
    """Program → Program: one idea, one equation, one file.

    Subclasses are frozen dataclasses; their fields are the pass's options. `accuracy` says what the pass may do to
    values: ``bitwise`` (nothing at all), ``rounding`` (reassociate; bounded), ``lossy`` (spends error budget).
    `spreads` says whether an infinity or NaN among them may spoil more results than it does before.
    """

    accuracy: ClassVar[Accuracy] = "bitwise"
    requires: ClassVar[tuple[str, ...]] = ()  # properties of the Program that earlier passes must ensure
    ensures: ClassVar[tuple[str, ...]] = ()
    repeat: ClassVar[bool] = True  # run until no match is left; False for passes that place rather than rewrite
    exploits: ClassVar[
        tuple[type, ...]
    ] = ()  # kinds of relations between calls that it needs, see `graphopt.ir.relations`
    spreads: ClassVar[bool] = False  # whether infinities and NaN may reach results that they do not reach before

    def __init_subclass__(cls, **options: Any) -> None:
        """Raise PassError where `accuracy` is none, or what is said about a pass would become an option of it."""
        super().__init_subclass__(**options)
        if cls.accuracy not in get_args(Accuracy):
            known = nearest(str(cls.accuracy), get_args(Accuracy))
            raise PassError(f"there is no accuracy {cls.accuracy!r}", where=cls.__name__, hint=known)
        for name, kind in _ABOUT.items():
            if "ClassVar" not in str(vars(cls).get("__annotations__", {}).get(name, "ClassVar")):
                hint = f"write it so: {name}: ClassVar[{kind}] = {vars(cls).get(name)!r}"
                raise PassError(f"{name} is annotated as an option of the pass", where=cls.__name__, hint=hint)

    @property
    def name(self) -> str:
        """The name everywhere (file, CLI, tests, docs): the class name in snake case."""
        return pass_name(type(self))

    @abstractmethod
    def find(self, program: Program) -> Iterable[Match]:
        """Places where the pass could fire, in graph order."""

    def legal(self, program: Program, match: Match) -> Refusal | None:
        """None when rewriting there keeps the declared accuracy and pays, else the reason why not. Changes nothing."""
        return None

    @abstractmethod
    def rewrite(self, program: Program, match: Match) -> None:
        """Change the graph at one legal match."""


def check_is_pass(entry: Any, where: str) -> None:
    """Raise UsageError for what is no pass, saying what to write instead."""
    if isinstance(entry, Pass):
        if not hasattr(entry, "__dataclass_fields__"):
            hint = "its fields are its options: @dataclass(frozen=True)"
            raise UsageError(f"the pass {type(entry).__name__} is not a dataclass", where=where, hint=hint)
        return
    hint, what = "pass instances: MergeLinears()", repr(entry)
    if isinstance(entry, type) and issubclass(entry, Pass):
        hint, what = f"an instance of it: {entry.__name__}()", f"the class {entry.__name__}"
    elif isinstance(entry, Sequence) and entry and all(isinstance(inner, Pass) for inner in entry):
        hint = "with a star its passes stand one by one: (*graphopt.pipelines.exact, MyPass())"
        what = f"a {type(entry).__name__} of {len(entry)} passes"
    raise UsageError(f"{what} is not a pass", where=where, hint=hint)


def pass_name(cls: type) -> str:
    """``MergeLinears`` → ``merge_linears``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def spell(pass_: Pass) -> str:
    """A pass with the options that differ from their defaults, as the command line spells it."""
    changed = [
        f"{entry.name}={getattr(pass_, entry.name)!r}"
        for entry in dataclasses.fields(pass_)  # type: ignore[arg-type]
        if getattr(pass_, entry.name) != entry.default
    ]
    return pass_.name + (f"{{{','.join(changed)}}}" if changed else "")


class Observer:
    """The one hook through which timing, verification, statistics, dumps, bisection and pictures see the compiler.

    All methods do nothing; override those that matter. What they raise goes to the caller, but for `checks`. Programs
    are not changed once a pass has ended, and may be kept.
    In order they are called: `program_begins`; for each pass `pass_begins`, then `allows`, `rewrites` and `rewritten`
    for each legal match and `refuses` for each other one, then `checks`, then `pass_ends` or `pass_fails`;
    `program_ends`; for each stage `build_begins`, then `build_ends` or `build_fails`. Where no pass gains from what was
    assumed of a Program's inputs, it begins again without that, before it has ended.
    """

    def program_begins(self, program: Program) -> None:
        """A captured Program is about to be optimised."""

    def program_ends(self, program: Program, parts: Sequence[Part]) -> None:
        """The passes are done, and the Program was split into stages."""

    def pass_begins(self, pass_: Pass, program: Program) -> None: ...

    def allows(self, pass_: Pass, match: Match) -> bool:
        """Whether a legal match may be rewritten. One that is not allowed is left as it is."""
        return True

    def rewrites(self, pass_: Pass, match: Match) -> None:
        """A legal match is about to be rewritten."""

    def rewritten(self, pass_: Pass, match: Match, program: Program) -> None:
        """A match was rewritten. The Program is still at work: read it, do not keep it."""

    def refuses(self, pass_: Pass, refusal: Refusal) -> None: ...

    def checks(self, pass_: Pass, before: Program, after: Program) -> None:
        """What a pass that fired has made. Raise a GraphoptError to have it rolled back."""

    def pass_ends(self, pass_: Pass, before: Program, after: Program, fired: int) -> None: ...

    def pass_fails(self, pass_: Pass, program: Program, error: PassError) -> None:
        """The pass was rolled back; compilation goes on with `program`."""

    def build_begins(self, part: Part, target: str) -> None: ...

    def build_ends(self, part: Part, target: str) -> None: ...

    def build_fails(self, part: Part, target: str, error: GraphoptError) -> None:
        """The target could not build the stage, which the eager target builds next."""


def erase_unread(program: Program, nodes: Iterable[fx.Node]) -> None:
    """Remove what nobody reads any more: those of `nodes` without readers or effects, and what only they read."""
    for node, below in [(node, node.all_input_nodes) for node in nodes]:
        if node.op == "call_function" and not (node.users or node._erased or has_effect(node)):
            program.graph.erase_node(node)
            erase_unread(program, below)
