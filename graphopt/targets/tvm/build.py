"""Kernels to machine code: one module, entered with a table of pointers, in which calls of kernels follow one another.

Threads are those of the OpenMP pool that torch itself uses, so that the two never wait for one another while spinning;
the team of a kernel takes task after task from one counter. How many there are is passed with every call: OpenMP's own
number is that of `torch.set_num_threads` only in threads of Python in which torch has looked at it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tvm
from tvm import tirx
from tvm.ir import StringImm

from . import dot, vectormath
from .emit import Kernel, c_function
from .image import Image, MachineCode, linked
from .isa import Isa

_RUNTIME = """
define ptr @graphopt_pointer_at(ptr %table, i32 %place) alwaysinline {
  %at = getelementptr ptr, ptr %table, i32 %place
  %pointer = load ptr, ptr %at
  ret ptr %pointer
}
define i32 @graphopt_next_task(ptr %team) alwaysinline {
  %counter = getelementptr i64, ptr %team, i32 1
  %task = atomicrmw add ptr %counter, i32 1 monotonic
  ret i32 %task
}
define i32 @graphopt_threads(ptr %team) alwaysinline {
  %at = getelementptr i32, ptr %team, i32 3
  %threads = load i32, ptr %at
  ret i32 %threads
}
define i32 @graphopt_prefetch(ptr %numbers, i32 %start, i32 %place) alwaysinline {
  %from = getelementptr float, ptr %numbers, i32 %start
  %at = getelementptr float, ptr %from, i32 %place
  call void @llvm.prefetch.p0(ptr %at, i32 0, i32 2, i32 1)
  ret i32 0
}
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @GOMP_parallel(ptr, ptr, i32, i32)
"""

# A team is a table of pointers, a counter, and the number of threads. One thread needs no OpenMP.
_LAUNCH = """
declare i32 @{name}(ptr)
define i32 @graphopt_launch_{name}(ptr %table, i32 %offset, i32 %threads) alwaysinline {{
  %team = alloca [2 x i64]
  %arguments = getelementptr ptr, ptr %table, i32 %offset
  store ptr %arguments, ptr %team
  %counter = getelementptr i64, ptr %team, i32 1
  store i32 0, ptr %counter
  %size = getelementptr i32, ptr %team, i32 3
  store i32 %threads, ptr %size
  %alone = icmp eq i32 %threads, 1
  br i1 %alone, label %one, label %many
one:
  %failed = call i32 @{name}(ptr %team)
  ret i32 0
many:
  call void @GOMP_parallel(ptr @{name}, ptr %team, i32 %threads, i32 0)
  ret i32 0
}}
"""


@dataclass(frozen=True)
class Call:
    """A kernel, and where its pointers begin in the table."""

    kernel: Kernel
    offset: int


class Library:
    """Machine code of some sequences of calls, compiled here.

    ``run(i, table)`` performs sequence i with a table of pointers, a contiguous int64 array's address, on as many
    threads as torch uses in the calling thread.
    """

    def __init__(self, isa: Isa, sequences: Sequence[Sequence[Call]]) -> None:
        self._code = MachineCode(image(isa, sequences))
        self._entries = [self._code.function(f"graphopt_run_{number}") for number in range(len(sequences))]

    def run(self, sequence: int, table: int) -> None:
        self._entries[sequence](table, torch.get_num_threads())


def image(isa: Isa, sequences: Sequence[Sequence[Call]]) -> Image:
    """Machine code of some sequences of calls, and of their kernels."""
    module = compiled(isa, sequences)
    descriptor = os.memfd_create("graphopt.o")  # a file in memory: there may be no folder to write into
    with os.fdopen(descriptor, "rb") as file:
        module.write_to_file(f"/proc/self/fd/{descriptor}", "o")
        return linked(file.read())


def compiled(isa: Isa, sequences: Sequence[Sequence[Call]]) -> Any:
    """TVM's module of some sequences of calls and their kernels: optimised, but not yet machine code."""
    kernels = {call.kernel.name: call.kernel for calls in sequences for call in calls}
    called = sorted(set().union(*(kernel.called for kernel in kernels.values())))
    text = _RUNTIME + "".join(_LAUNCH.format(name=name) for name in kernels) + _functions(isa, called)
    functions = {name: kernel.function for name, kernel in kernels.items()}
    for number, calls in enumerate(sequences):
        functions[f"graphopt_run_{number}"] = _entry(f"graphopt_run_{number}", calls, text)
    return _lowered(tvm.IRModule(functions), isa)


def _functions(isa: Isa, called: Sequence[tuple[str, int]]) -> str:
    """LLVM's text of the functions that kernels call."""
    products = [function for function in called if function[0] in dot.FUNCTIONS]
    return vectormath.source(function for function in called if function not in products) + dot.source(products, isa)


def _entry(name: str, calls: Sequence[Call], text: str) -> Any:
    """The function that performs calls one after the other."""
    table, threads = tirx.Var("table", "handle"), tirx.Var("threads", "int32")

    def launch(call: Call) -> Any:
        place = tirx.const(call.offset, "int32")
        return tirx.Evaluate(tirx.call_extern("int32", f"graphopt_launch_{call.kernel.name}", table, place, threads))

    body = tirx.SeqStmt([*map(launch, calls), tirx.Return(tirx.const(0, "int32"))])
    imports = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", StringImm(text), body)
    return c_function(name, [table, threads], imports)


def _lowered(module: Any, isa: Isa) -> Any:
    """Lowered by the few passes that explicit vectors and flat buffers leave to do, and compiled."""
    passes, target = tirx.transform, isa.target()
    steps = [
        passes.BindTarget(target.with_host(target)),
        passes.FlattenBuffer(),
        passes.StmtSimplify(),  # after flattening, which adds an offset of zero to every index
        passes.CommonSubexprElim(),
        passes.LowerTVMBuiltin(),
        passes.LowerIntrin(),
    ]
    for step in steps:
        module = step(module)
    return tvm.get_global_func("target.build.llvm")(module, target)
