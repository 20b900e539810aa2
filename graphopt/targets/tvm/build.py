"""Kernels to machine code: one module, entered with a table of pointers, in which calls of kernels follow one another.

Threads are those of the OpenMP pool that torch itself uses, so that the two never wait for one another while they spin.
They go through all kernels of a sequence, and wait for each other between one and the next. Of a kernel's tasks each
has a part and does it first; then it steals from others'. How many threads there are is passed with every call:
OpenMP's own number is that of `torch.set_num_threads` only in threads of Python in which torch has looked at it.
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
from .image import LINE, PARTS, Image, MachineCode, linked
from .isa import Isa

_RUNTIME = """
define ptr @graphopt_pointer_at(ptr %table, i32 %place) alwaysinline {
  %at = getelementptr ptr, ptr %table, i32 %place
  %pointer = load ptr, ptr %at
  ret ptr %pointer
}
define i32 @graphopt_parts(ptr %team) alwaysinline {
  %at = getelementptr i32, ptr %team, i32 2
  %parts = load i32, ptr %at
  ret i32 %parts
}
declare i32 @omp_get_thread_num()
define i32 @graphopt_own_part(ptr %team) alwaysinline {
  %parts = call i32 @graphopt_parts(ptr %team)
  %alone = icmp eq i32 %parts, 1
  br i1 %alone, label %done, label %ask
ask:
  %number = call i32 @omp_get_thread_num()
  %part = urem i32 %number, %parts
  br label %done
done:
  %found = phi i32 [ 0, %0 ], [ %part, %ask ]
  ret i32 %found
}
define i32 @graphopt_begin(i32 %tasks, i32 %part, i32 %parts) alwaysinline {
  %product = mul i32 %tasks, %part
  %begin = udiv i32 %product, %parts
  ret i32 %begin
}
define i32 @graphopt_next_task(ptr %team, i32 %tasks, ptr %turn) alwaysinline {
  %parts = call i32 @graphopt_parts(ptr %team)
  %counters = getelementptr i32, ptr %team, i32 4
  %gone.at = getelementptr i32, ptr %turn, i32 1
  br label %try
try:
  %part = load i32, ptr %turn
  %begin = call i32 @graphopt_begin(i32 %tasks, i32 %part, i32 %parts)
  %following = add i32 %part, 1
  %end = call i32 @graphopt_begin(i32 %tasks, i32 %following, i32 %parts)
  %counter = getelementptr i32, ptr %counters, i32 %part
  %left = load atomic i32, ptr %counter monotonic, align 4
  %at = add i32 %begin, %left
  %open = icmp slt i32 %at, %end
  br i1 %open, label %take, label %go
take:
  %number = atomicrmw add ptr %counter, i32 1 monotonic
  %task = add i32 %begin, %number
  %there = icmp slt i32 %task, %end
  br i1 %there, label %found, label %go
go:
  %gone = load i32, ptr %gone.at
  %further = add i32 %gone, 1
  store i32 %further, ptr %gone.at
  %last = icmp sge i32 %further, %parts
  br i1 %last, label %none, label %turn.on
turn.on:
  %other = urem i32 %following, %parts
  store i32 %other, ptr %turn
  br label %try
found:
  ret i32 %task
none:
  ret i32 %tasks
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

# Waiting for all threads: so many have to arrive. Who waits for long may wait for a thread that has no core, and gives
# it its own: at first in turns with others, then for some microseconds.
_WAIT = """
define void @graphopt_wait(ptr %arrived, i32 %all) alwaysinline {{
  %before = atomicrmw add ptr %arrived, i32 1 acq_rel
  br label %look
look:
  %round = phi i32 [ 0, %0 ], [ %next, %wait ], [ %next, %yield ], [ %round, %sleep ]
  %now = load atomic i32, ptr %arrived acquire, align 4
  %there = icmp sge i32 %now, %all
  br i1 %there, label %done, label %wait
wait:
  call void @llvm.x86.sse2.pause()
  %next = add i32 %round, 1
  %long = icmp sgt i32 %next, {spins}
  br i1 %long, label %give, label %look
give:
  %longer = icmp sgt i32 %next, {yields}
  br i1 %longer, label %sleep, label %yield
yield:
  %yielded = call i32 @sched_yield()
  br label %look
sleep:
  %slept = call i32 @usleep(i32 50)
  br label %look
done:
  ret void
}}
declare void @llvm.x86.sse2.pause()
declare i32 @sched_yield()
declare i32 @usleep(i32)
declare i32 @omp_get_num_threads()
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""
_SPINS, _YIELDS = 200, 4000  # rounds until a thread that waits yields, until it sleeps: some microseconds, a few ms

# A sequence of calls is one parallel region: `start` enters it, and `share` is what each of its threads does of every
# kernel in turn. A team is a table of pointers, the number of parts of the tasks, and a counter for each part. Behind
# the teams lies what threads wait at. One thread needs no OpenMP.
_SEQUENCE = """
define i32 @graphopt_start_{number}(ptr %table, i32 %threads) alwaysinline {{
  %teams = alloca [{size} x i8], align {line}
  call void @llvm.memset.p0.i64(ptr %teams, i8 0, i64 {size}, i1 false)
  %few = icmp slt i32 %threads, {parts}
  %parts = select i1 %few, i32 %threads, i32 {parts}
{teams}
  %alone = icmp eq i32 %threads, 1
  br i1 %alone, label %one, label %many
one:
  %failed = call i32 @graphopt_together_{number}(ptr %teams)
  ret i32 0
many:
  call void @GOMP_parallel(ptr @graphopt_together_{number}, ptr %teams, i32 %threads, i32 0)
  ret i32 0
}}
declare i32 @graphopt_together_{number}(ptr)
define i32 @graphopt_share_{number}(ptr %teams) alwaysinline {{
  %parts = call i32 @graphopt_parts(ptr %teams)
  %alone = icmp eq i32 %parts, 1
  br i1 %alone, label %begin, label %ask
ask:
  %there = call i32 @omp_get_num_threads()
  br label %begin
begin:
  %threads = phi i32 [ 1, %0 ], [ %there, %ask ]
  %arrived = getelementptr i8, ptr %teams, i64 {end}
{shares}
  ret i32 0
}}
"""
_TEAM = """  %arguments.{place} = getelementptr ptr, ptr %table, i32 {offset}
  %team.{place} = getelementptr i8, ptr %teams, i64 {start}
  store ptr %arguments.{place}, ptr %team.{place}
  %parts.{place} = getelementptr i8, ptr %team.{place}, i64 8
  store i32 %parts, ptr %parts.{place}
"""
_SHARE = """  %team.{place} = getelementptr i8, ptr %teams, i64 {start}
  %failed.{place} = call i32 @{name}(ptr %team.{place})
"""
_MEET = """  %all.{place} = mul i32 %threads, {place}
  call void @graphopt_wait(ptr %arrived, i32 %all.{place})
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
    text = (
        _RUNTIME
        + _WAIT.format(spins=_SPINS, yields=_YIELDS)
        + "".join(f"declare i32 @{name}(ptr)\n" for name in kernels)
    )
    text += "".join(_sequence(number, calls) for number, calls in enumerate(sequences)) + _functions(isa, called)
    functions = {name: kernel.function for name, kernel in kernels.items()}
    for number in range(len(sequences)):
        functions |= _entries(number, "" if number else text)
    return _lowered(tvm.IRModule(functions), isa)


def _functions(isa: Isa, called: Sequence[tuple[str, int]]) -> str:
    """LLVM's text of the functions that kernels call."""
    products = [function for function in called if function[0] in dot.FUNCTIONS]
    return vectormath.source(function for function in called if function not in products) + dot.source(products, isa)


def _sequence(number: int, calls: Sequence[Call]) -> str:
    """LLVM's text of the functions that perform calls one after the other."""
    teams, shares = "", ""
    for place, call in enumerate(calls):
        start = place * LINE
        teams += _TEAM.format(place=place, offset=call.offset, start=start)
        shares += _MEET.format(place=place) if place else ""
        shares += _SHARE.format(place=place, name=call.kernel.name, start=start)
    end = len(calls) * LINE
    return _SEQUENCE.format(number=number, size=end + LINE, line=LINE, end=end, parts=PARTS, teams=teams, shares=shares)


def _entries(number: int, text: str) -> dict[str, Any]:
    """The functions that perform a sequence of calls: what is called, and what each thread does.

    They call what is inlined from LLVM's text, which one function brings for all: of a function defined there TVM keeps
    nothing else.
    """
    table, teams, threads = tirx.Var("table", "handle"), tirx.Var("teams", "handle"), tirx.Var("threads", "int32")

    def calling(name: str, inlined: str, *arguments: Any, text: str = "") -> Any:
        call = tirx.Evaluate(tirx.call_extern("int32", inlined, *arguments))
        body = tirx.SeqStmt([call, tirx.Return(tirx.const(0, "int32"))])
        if text:
            body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", StringImm(text), body)
        return c_function(name, arguments, body)

    run, together = f"graphopt_run_{number}", f"graphopt_together_{number}"
    return {
        run: calling(run, f"graphopt_start_{number}", table, threads, text=text),
        together: calling(together, f"graphopt_share_{number}", teams),
    }


def _lowered(module: Any, isa: Isa) -> Any:
    """Lowered by the few passes that explicit vectors and flat buffers leave to do, and compiled.

    Without `FlattenBuffer`: buffers are flat, and its simplification takes ``(3 - i) % 4`` for ``-i % 4`` (TVM 0.27).
    """
    passes, target = tirx.transform, isa.target()
    steps = [
        passes.BindTarget(target.with_host(target)),
        passes.StmtSimplify(),
        passes.CommonSubexprElim(),
        passes.LowerTVMBuiltin(),
        passes.LowerIntrin(),
    ]
    for step in steps:
        module = step(module)
    return tvm.get_global_func("target.build.llvm")(module, target)
