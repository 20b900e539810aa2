"""A benchmark on a CPU that multiplies bfloat16 (AVX512-BF16), where a virtual machine hides that it does.

    python -m benchmarks.shown cpu_step --dtype bfloat16 --contenders original,tvm,torch.compile,openvino
    python -m benchmarks.shown --always cpu_step --dtype bfloat16 --contenders original,tvm

Every contender asks the CPU what it has, by the instruction ``cpuid``, which a virtual machine answers: many leave out
AVX512-BF16, whose instructions work all the same. Here ``cpuid`` is made to fault (Linux's ``ARCH_SET_CPUID``), and a
handler answers what the machine does, with this one bit set; so all contenders are told the same. Whether the
instructions do work is tried first. Needs gcc and Linux on x86-64; only this process and those that it starts see it.

graphopt measures whether products of bfloat16 are faster than those of float32, and else does not use them. With
``--always`` it does, to see what its kernels of bfloat16 reach.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

_MARK = "GRAPHOPT_BENCHMARK_SHOWN"  # the folder, in the environment of the process that is shown the instructions
_FLAG = "avx512_bf16"
# Libraries install handlers of the same fault: theirs is called for all that is no cpuid.
_HANDLER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#define ARCH_SET_CPUID 0x1012

typedef int (*set_action)(int, const struct sigaction *, struct sigaction *);
static struct sigaction others;

static set_action real(void) {
  static set_action found;
  if (!found) found = (set_action)dlsym(RTLD_NEXT, "sigaction");
  return found;
}

int sigaction(int number, const struct sigaction *wanted, struct sigaction *before) {
  if (number != SIGSEGV) return real()(number, wanted, before);
  struct sigaction was = others;
  if (wanted) others = *wanted;
  if (before) *before = was;
  return 0;
}

typedef void (*handler)(int);

handler signal(int number, handler wanted) {
  struct sigaction mine, before;
  memset(&mine, 0, sizeof mine);
  mine.sa_handler = wanted, mine.sa_flags = SA_RESTART;
  return sigaction(number, &mine, &before) ? SIG_ERR : before.sa_handler;
}

static void answer(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)registers[REG_RIP];
  if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) {
    if (others.sa_flags & SA_SIGINFO) others.sa_sigaction(number, info, context);
    else if (others.sa_handler != SIG_DFL && others.sa_handler != SIG_IGN) others.sa_handler(number);
    else real()(SIGSEGV, &others, 0); /* the fault comes again */
    return;
  }
  unsigned leaf = registers[REG_RAX], part = registers[REG_RCX], a, b, c, d;
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(part));
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  if (leaf == 7 && part == 0 && a < 1) a = 1;
  if (leaf == 7 && part == 1) a |= 1u << 5; /* AVX512-BF16 */
  registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
  struct sigaction mine;
  memset(&mine, 0, sizeof mine);
  mine.sa_sigaction = answer, mine.sa_flags = SA_SIGINFO | SA_NODEFER;
  real()(SIGSEGV, &mine, &others);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
    fputs("this CPU, or this system, does not let cpuid fault\n", stderr);
    _exit(3);
  }
}
"""
_TRIAL = r"""
#include <immintrin.h>
int main(void) {
  float sums[16];
  const __m512i ones = _mm512_set1_epi32(0x3f803f80); /* 1.0, twice */
  _mm512_storeu_ps(sums, _mm512_dpbf16_ps(_mm512_setzero_ps(), (__m512bh)ones, (__m512bh)ones));
  for (int lane = 0; lane < 16; lane++)
    if (sums[lane] != 2.0f) return 1;
  return 0;
}
"""


def main() -> int:
    """Run a benchmark in a process that is shown the instructions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--always", action="store_true", help="graphopt multiplies bfloat16 whether faster or not")
    parser.add_argument("name", choices=("cpu_step", "cpu_image", "attention"), help="the benchmark")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own")
    options = parser.parse_args()
    if _MARK in os.environ:
        return _run(options, Path(os.environ[_MARK]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if complaint := _prepare(folder):
            print(complaint, file=sys.stderr)
            return 2
        around = {**os.environ, _MARK: str(folder), "LD_PRELOAD": str(folder / "handler.so")}
        return subprocess.run([sys.executable, "-m", "benchmarks.shown", *sys.argv[1:]], env=around).returncode


def _prepare(folder: Path) -> str | None:
    """Build the handler, or say why it cannot be done."""
    (folder / "trial.c").write_text(_TRIAL)
    (folder / "handler.c").write_text(_HANDLER)
    for command in (
        ["gcc", "-O1", "-mavx512f", "-mavx512bf16", "-o", str(folder / "trial"), str(folder / "trial.c")],
        ["gcc", "-O1", "-shared", "-fPIC", "-o", str(folder / "handler.so"), str(folder / "handler.c"), "-ldl"],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            return "there is no gcc, which builds what answers cpuid"
        except subprocess.CalledProcessError as error:
            return f"gcc failed: {error.stderr.strip()}"
    if subprocess.run([str(folder / "trial")]).returncode:
        return "this CPU does not multiply bfloat16: vdpbf16ps was tried, and failed"
    return None


def _run(options: argparse.Namespace, folder: Path) -> int:
    from graphopt.ir import products
    from graphopt.targets.tvm import host

    lines = host.CPUINFO.read_text().splitlines()
    host.CPUINFO = folder / "cpuinfo"
    host.CPUINFO.write_text("\n".join(f"{line} {_FLAG}" if line.startswith("flags") else line for line in lines))
    print(f"Products of bfloat16 take {1 / products.gain():.2f} of the time of float32's, in torch.\n")
    sys.argv = [options.name, *options.arguments]
    always = mock.patch.multiple(products, supported=lambda: True, in_torch=lambda: True)
    with always if options.always else contextlib.nullcontext():
        runpy.run_module(f"benchmarks.{options.name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
