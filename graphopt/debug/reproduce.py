"""A rewrite as one Python file that runs by itself: its few nodes before and after, and inputs that tell them apart."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.utils._pytree import tree_flatten, tree_map_only

from graphopt.capture.calls import CallTaker
from graphopt.capture.roles import NUMBERS_AS_TENSORS
from graphopt.debug.diff import difference
from graphopt.debug.region import Region, narrowed, region
from graphopt.ir.printer import describe, line
from graphopt.ir.program import Input, Program, val
from graphopt.ir.relations import part_named
from graphopt.ir.rewrite import Pass
from graphopt.ir.verify import compare, evaluate

Calls: TypeAlias = Sequence[tuple[tuple[Any, ...], dict[str, Any]]]  # arguments of calls of a module
_SEED = 0
_SMALL = 64  # numbers of a tensor that is written into the file
_CALLS = 8


@dataclass(frozen=True)
class Reproduction:
    """Two functions that would have to agree, and inputs on which they do not.

    Attributes
    ----------
    inputs : values of the inputs of both, in order.
    seeded : whether they are drawn by `seeded`; else those of the run.
    off : how far results are apart, in words.
    """

    region: Region
    inputs: list[Any]
    seeded: bool
    off: str


def reproduce(
    before: Program, after: Program, pass_: Pass, record: Callable[[], tuple[torch.nn.Module, Calls]]
) -> Reproduction | str:
    """What one rewrite of `pass_` does wrong, on as little as possible; or why that cannot be shown.

    Parameters
    ----------
    record : the module that the Programs are of, and calls of it by the original; asked only where seeded inputs show
        no difference beyond what the pass declares.
    """
    found = region(before, after, difference(before, after))
    if isinstance(found, str):
        return found
    drawn = _seeded(found.before)
    allowed = "bitwise" if pass_.accuracy == "bitwise" else "rounding"  # a lossy pass may do what is looked for here
    if off := _off(found, drawn, allowed):
        return _narrowed(found, drawn, True, off)
    module, calls = record()
    real = [values for call in calls if (values := _real(before, found.before, module, *call)) is not None]
    for accuracy in (allowed, "bitwise"):  # the second: what is allowed, and may still grow over the steps
        for values in real:
            if off := _off(found, values, accuracy):
                return _narrowed(found, values, False, off)
    if not real:
        return "seeded inputs show no difference, and the inputs of the run do not fit the program"
    return "its nodes give the same before and after, on seeded inputs and on those of the run"


def _narrowed(found: Region, inputs: list[Any], drawn: bool, off: str) -> Reproduction:
    """Without results that are equal, and inputs that only they need."""
    whole = Reproduction(found, inputs, drawn, off)
    results = _results(found, inputs)
    if isinstance(results, str):
        return whole
    pairs = enumerate(zip(*results, strict=True))
    apart = [k for k, (old, new) in pairs if compare(_flat(old), _flat(new), "bitwise")]
    smaller = narrowed(found, apart)
    if isinstance(smaller, str):
        return whole
    known = dict(zip((entry.name for entry in found.before.inputs), inputs, strict=True))
    values = _seeded(smaller.before) if drawn else [known[entry.name] for entry in smaller.before.inputs]
    again = _off(smaller, values, "bitwise")  # on fewer inputs others are drawn
    return Reproduction(smaller, values, drawn, again if drawn else off) if again else whole


def _off(found: Region, inputs: list[Any], accuracy: str) -> str | None:
    """How far the results are apart beyond what the accuracy allows; None where they are not or cannot be had."""
    results = _results(found, inputs)
    if isinstance(results, str):
        return results or None
    exact = _flat(evaluate(found.before, inputs, double=True)) if accuracy != "bitwise" else None
    return compare(_flat(results[0]), _flat(results[1]), accuracy, exact)


def _results(found: Region, inputs: list[Any]) -> tuple[list[Any], list[Any]] | str:
    """Of both sides; or how the second fails; or ``""`` where the first does: seeded values may be no index."""
    try:
        olds = evaluate(found.before, inputs)
    except (RuntimeError, IndexError, ValueError):
        return ""
    try:
        return olds, evaluate(found.after, inputs)
    except (RuntimeError, IndexError, ValueError) as error:
        return f"after raises {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _flat(values: Any) -> list[Any]:
    return tree_flatten(values)[0]


# -- inputs ----------------------------------------------------------------------------------------------------------


def seeded(size: list[int], dtype: torch.dtype, generator: torch.Generator, weight: bool = False) -> torch.Tensor:
    """Normal numbers (those of a weight scaled by its fan-in), integers from 0 to 7, or truth values."""
    if dtype.is_floating_point or dtype.is_complex:
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        return (values / max(1, values[:1].numel()) ** 0.5 if weight and values.ndim > 1 else values).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 8, size, generator=generator).to(dtype)


def laid(values: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """The same values, lying in memory as those of the model do."""
    once = values[tuple(slice(1 if step == 0 else None) for step in strides)]
    return torch.empty_strided(once.shape, strides, dtype=values.dtype).copy_(once).expand(values.shape)


def _seeded(program: Program) -> list[Any]:
    """Values for the inputs of a cut-out Program; constants of the model are what they are."""
    generator, values = torch.Generator().manual_seed(_SEED), list[Any]()
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        value = val(node)
        if entry.name in program.constants:
            values.append(program.constants[entry.name])
        elif isinstance(value, torch.Tensor):
            drawn = seeded([int(n) for n in value.shape], value.dtype, generator, entry.role == "weight")
            values.append(laid(drawn, tuple(int(n) for n in value.stride())))
        else:
            values.append(value if isinstance(value, bool | float) else int(value))
    return values


@contextmanager
def recorded(module: torch.nn.Module) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The arguments of the first calls of a module while it runs, copied."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(calls) < _CALLS:
            calls.append(tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs)))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _real(
    whole: Program, part: Program, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any] | None:
    """Values of the inputs of `part`, cut out of `whole`, in a call of the module; None where that does not fit."""
    for numbers in (NUMBERS_AS_TENSORS, frozenset[str]()):
        taker = CallTaker(module.forward, numbers)
        call = taker.take(args, kwargs)
        arguments = dict(zip(taker.paths(call), call.leaves, strict=True))
        try:
            given = [_value(whole, entry, module, arguments) for entry in whole.inputs]
        except (KeyError, AttributeError, TypeError, IndexError):
            continue
        shapes = [(tuple(val(node).shape), val(node).dtype) for node in whole.placeholders]
        if [(tuple(value.shape), value.dtype) for value in given] == shapes:
            return _evaluated(whole, [entry.name for entry in part.inputs], given)
    return None


def _value(program: Program, entry: Input, module: torch.nn.Module, arguments: dict[str, Any]) -> Any:
    if entry.name in program.constants:
        return program.constants[entry.name]
    if entry.role != "weight":
        return part_named(entry.path, arguments)
    owner, _, leaf = entry.path.rpartition(".")
    return getattr(module.get_submodule(owner), leaf).detach()


def _evaluated(program: Program, names: Sequence[str], inputs: list[Any]) -> list[Any]:
    """Values of some nodes of a Program."""
    program = program.copy()
    known = {node.name: node for node in program.graph.nodes}
    program.output.args = (tuple(known[name] for name in names),)
    program.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return evaluate(program, inputs)


# -- the file --------------------------------------------------------------------------------------------------------


def write(found: Reproduction, path: Path, about: str) -> list[Path]:
    """Write the file, and beside it a .safetensors where inputs of the run are too many to be written out.

    Parameters
    ----------
    about : one sentence that says what it reproduces, first in its docstring.
    """
    tensors = _large(found)
    paths = [path]
    if tensors:
        from safetensors.torch import save_file

        beside = path.with_suffix(".safetensors")
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, beside)
        paths.append(beside)
    path.write_text(text(found, about, path.with_suffix(".safetensors").name if tensors else ""), encoding="utf-8")
    return paths


def _large(found: Reproduction) -> dict[str, torch.Tensor]:
    """Inputs that are not drawn, and that are too large to be written out."""
    named = zip(found.region.before.inputs, found.inputs, strict=True)
    held = {e.name: v for e, v in named if isinstance(v, torch.Tensor) and not _drawn(found, e.name)}
    return {name: value for name, value in held.items() if value.numel() > _SMALL}


def _drawn(found: Reproduction, name: str) -> bool:
    return found.seeded and name not in found.region.before.constants


def text(found: Reproduction, about: str, beside: str = "") -> str:
    """The file; deterministic, as dumps are. `beside` is the name of the file that holds large inputs."""
    before, after = found.region.before, found.region.after
    kind = "seeded values that show it" if found.seeded else "values of the run: seeded ones do not show it"
    names = [f"{_shown(old)} → {_shown(new)}" for old, new in zip(before.results, after.results, strict=True)]
    uses = [function for function, used in ((seeded, found.seeded), (laid, True)) if used]
    parts = [
        f'"""{about}\n\nWritten by graphopt bisect. Inputs are {kind}.\n'
        'It prints how far results are apart, and ends with exit code 1 when they differ.\n"""',
        _imports(beside),
        "ops = torch.ops\nRESULTS = [  # before → after\n" + "".join(f"    {name!r},\n" for name in names) + "]",
        _function("before", before),
        _function("after", after),
        *(inspect.getsource(function).rstrip() for function in uses),
        _given(found, beside),
        textwrap.dedent(_MAIN).strip(),
    ]
    return parts[0] + "\n\n" + "\n\n".join(parts[1:3]) + "\n\n\n" + "\n\n\n".join(parts[3:]) + "\n"


_MAIN = """
    def main() -> int:
        given, differ = inputs(), False
        with torch.no_grad():
            results = []
            for function in (before, after):
                torch.manual_seed(0)
                results.append(function(**given))
        for name, old, new in zip(RESULTS, *results):
            if not torch.equal(old, new):
                differ = True
                off = (old.double() - new.double()).abs().max().item()
                print(f"{name}: off by up to {off:.3g} where values reach {old.double().abs().max().item():.3g}")
        print("before and after differ" if differ else "before and after give the same")
        return int(differ)


    if __name__ == "__main__":
        sys.exit(main())
"""


def _imports(beside: str) -> str:
    standard = "import math\nimport operator\nimport sys\n" + ("from pathlib import Path\n" if beside else "")
    others = "import torch\n" + ("from safetensors.torch import load_file\n" if beside else "")
    return f"{standard}\n{others}from torch import device, inf, nan"


def _shown(node: fx.Node | None) -> str:
    assert node is not None
    return node.name


def _function(name: str, program: Program) -> str:
    lines, here = [f"def {name}({', '.join(node.name for node in program.placeholders)}):"], None
    for node in program.graph.nodes:
        if node.op == "call_function":
            where = f"{node.meta.get('module') or '(model)'}  {node.meta.get('source', '')}".rstrip()
            lines += [f"    # {where}"] if where != here else []
            lines.append(f"    {line(node)}  # {describe(val(node))}")
            here = where
        elif node.op == "output":
            lines.append(f"    {line(node)}")
    return "\n".join(lines)


def _given(found: Reproduction, beside: str) -> str:
    lines = ["def inputs():"]
    if found.seeded:
        lines.append(f"    generator = torch.Generator().manual_seed({_SEED})")
    if beside:
        lines.append(f"    saved = load_file(Path(__file__).parent / {beside!r})")
    lines.append("    return {")
    for entry, value in zip(found.region.before.inputs, found.inputs, strict=True):
        lines.append(f"        {entry.name!r}: {_literal(found, entry, value)},  # {entry.role}")
    return "\n".join([*lines, "    }"])


def _literal(found: Reproduction, entry: Input, value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if _drawn(found, entry.name):
        weight = ", weight=True" if entry.role == "weight" else ""
        values = f"seeded({list(value.shape)}, {value.dtype}, generator{weight})"
    elif value.numel() > _SMALL:
        values = f"saved[{entry.name!r}]"
    else:
        values = f"torch.tensor({value.tolist()}, dtype={value.dtype})"
    return f"laid({values}, {tuple(value.stride())})"
