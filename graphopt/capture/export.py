"""From a module and one call of it to a Program, by ``torch.export`` and functionalisation."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind, OutputKind

from graphopt.capture.calls import Call, CallTaker
from graphopt.capture.functional import functional
from graphopt.capture.guards import twin
from graphopt.errors import CaptureError
from graphopt.ir.effects import METADATA_CHECKS
from graphopt.ir.program import Input, Program, Role


class _Bound(torch.nn.Module):
    """The module with everything but its tensor arguments fixed; takes the tensors in order."""

    def __init__(self, module: torch.nn.Module, taker: CallTaker, call: Call) -> None:
        super().__init__()
        self.module, self._taker, self._call = module, taker, call
        self.training = module.training

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self._call.leaves]
        args, kwargs = self._taker.rebuild(leaves, self._call.spec)
        return self.module.forward(*args, **kwargs)


def capture(
    module: torch.nn.Module, taker: CallTaker, call: Call, roles: Mapping[str, Role], name: str = ""
) -> Program:
    """The Program of one call.

    Parameters
    ----------
    roles : role of every tensor argument by key path (see `graphopt.capture.roles`).
    name : name of the Program; the class of the module when empty.

    Raises
    ------
    CaptureError : the module cannot be exported, or it changes its own buffers or its arguments.
    """
    name = name or type(module).__name__
    # Traced in new shells, so that a thread that runs the module meanwhile does not meet the tracer's parameters.
    shells = twin(module)
    with _quiet():
        try:
            exported, graph = _exported(shells or module, taker, call)
            if shells is not None and _holds_own(exported, module):
                exported, graph = _exported(module, taker, call)
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:300]
            raise CaptureError(
                f"{type(module).__name__} could not be exported: {type(error).__name__}: {reason}",
                where=name,
                hint="the model goes on running as it is; torch.export.export(module, args, strict=False) shows more",
            ) from error
    paths = [path for path, leaf in zip(taker.paths(call), call.leaves, strict=True) if isinstance(leaf, torch.Tensor)]
    return program_of(exported, roles, paths, graph, name=name, prefix="module.")


def _exported(
    module: torch.nn.Module, taker: CallTaker, call: Call
) -> tuple[torch.export.ExportedProgram, fx.Graph | None]:
    """What torch exports, and its functional graph; None where that is its own."""
    # New objects: the tracer takes an argument that is a parameter of the module for that parameter, in every call.
    fresh = {id(tensor): tensor.clone() if tensor.is_inference() else tensor.detach() for tensor in call.tensors}
    tensors = tuple(fresh[id(tensor)] for tensor in call.tensors)
    with _attributes_kept(module):
        exported: torch.export.ExportedProgram = torch.export.export(_Bound(module, taker, call), tensors, strict=False)
    graph = functional(exported)
    return (exported, graph) if graph is not None else (exported.run_decompositions({}), None)


def _holds_own(exported: torch.export.ExportedProgram, module: torch.nn.Module) -> bool:
    """Whether the trace met a parameter of the module by a way around its tables, as if it were a constant."""
    own = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers()) if tensor.numel()}
    found = (value for value in exported.constants.values() if isinstance(value, torch.Tensor))
    return any(value.data_ptr() in own for value in found)


def program_of(
    exported: torch.export.ExportedProgram,
    roles: Mapping[str, Role],
    paths: list[str],
    graph: fx.Graph | None = None,
    *,
    name: str,
    prefix: str = "",
) -> Program:
    """An exported program as a Program.

    Parameters
    ----------
    graph : its functional graph; its own where it has been functionalised.
    prefix : stripped from the names of weights and modules.
    """
    signature = exported.graph_signature
    changed = [spec for spec in signature.output_specs if spec.kind != OutputKind.USER_OUTPUT]
    if changed:
        raise CaptureError(
            f"{name} changes {changed[0].target or 'its arguments'} while it runs",
            where=f"{changed[0].kind.name.lower()} in the exported graph",
            hint="a model in training mode updates its statistics: call model.eval() before compiling",
        )
    graph, inputs, constants, user_paths = graph or exported.graph, [], {}, iter(paths)
    for node, spec in zip(graph.find_nodes(op="placeholder"), signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            path = next(user_paths)
            inputs.append(Input(node.name, roles[path], path))
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            inputs.append(Input(node.name, "weight", str(spec.target).removeprefix(prefix)))
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            constants[node.name] = exported.constants[str(spec.target)]
            inputs.append(Input(node.name, "weight", ""))
        else:
            raise CaptureError(f"{name} takes an input of kind {spec.kind.name}, which graphopt does not know",
                               where=node.name)  # fmt: skip
    assert exported.call_spec.out_spec is not None
    program = Program(graph, tuple(inputs), constants, exported.call_spec.out_spec, name, exported.graph_module)
    program = _named_by_path(program.copy())
    _annotate(program, prefix)
    return program


def _named_by_path(program: Program) -> Program:
    """Placeholders named after the arguments and weights they stand for, so that dumps read like the model."""
    renamed = []
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        if entry.path:
            node._rename(re.sub(r"\W", "_", f"p_{entry.path}" if entry.role == "weight" else entry.path))
        if entry.name in program.constants:
            program.constants[node.name] = program.constants.pop(entry.name)
        renamed.append(Input(node.name, entry.role, entry.path))
    program.inputs = tuple(renamed)
    return program


def _annotate(program: Program, prefix: str) -> None:
    """Keep shapes and provenance, drop the rest, and drop checks that the guards of a call repeat."""
    for node in program.nodes:
        if node.op == "call_function" and node.target in METADATA_CHECKS and not node.users:
            program.graph.erase_node(node)
            continue
        value = node.meta.get("val")
        meta: dict[str, Any] = {"val": value.detach() if isinstance(value, torch.Tensor) else value}
        if node.op == "call_function":
            meta["source"] = source_line(node)
            meta["module"] = _module_path(node, prefix)
        node.meta = meta


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def source_line(node: fx.Node) -> str:
    """The user's line a node came from, with the path shortened to the package: ``diffusers/models/resnet.py:341``.

    The innermost line that is not torch's own: that of the call, not one inside ``torch/nn/modules/linear.py``.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    inside = 1 + max((k for k, (path, _) in enumerate(frames) if path == __file__), default=-1)
    inner = frames[inside:] or frames
    outside = (frame for frame in reversed(inner) if not in_package(frame[0]).startswith("torch/"))
    path, line = next(outside, inner[-1])
    return f"{in_package(path)}:{line}"


def in_package(path: str) -> str:
    """A file's path from its package on, where it is installed; else its name."""
    parts = path.replace("\\", "/").split("/")
    for anchor in ("site-packages", "dist-packages"):
        if anchor in parts:
            return "/".join(parts[parts.index(anchor) + 1 :])
    return parts[-1]


def _module_path(node: fx.Node, prefix: str) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return str(path).removeprefix(prefix) if path != prefix.rstrip(".") else ""


@contextlib.contextmanager
def _attributes_kept(module: torch.nn.Module) -> Iterator[None]:
    """The very objects a module held stay its attributes: the tracer leaves equal copies of lists and dicts behind."""
    held = [(part.__dict__, dict(part.__dict__)) for part in module.modules()]
    try:
        yield
    finally:
        for state, before in held:
            state.update((name, value) for name, value in before.items() if state.get(name) is not value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exports warn and log about things a user of graphopt can do nothing about."""
    logged = logging.root.manager.disable
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logged)
