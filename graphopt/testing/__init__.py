"""For authors of passes: Programs to try a pass on, and the oracle that says whether it may be trusted.

>>> from graphopt.passes import RemoveDead
>>> before = sketch('''
...     unused = ops.aten.mul.Tensor(x, 2)
...     add = ops.aten.add.Tensor(x, 1)
...     return (add,)
... ''', x="f32[3]")
>>> check_pass(RemoveDead(), before.program).fired
1

`trace` and `sketch` make Programs from a function and by hand, `random_graph` and the hypothesis strategy `programs`
make them at random; `check_pass` checks one pass, `check_sequence` passes in any order.
"""

from graphopt.testing.checks import Checked, Recorder, check_pass
from graphopt.testing.graphs import random_graph
from graphopt.testing.minimise import minimise
from graphopt.testing.orders import random_sequence
from graphopt.testing.sequences import Ran, check_sequence
from graphopt.testing.sketches import Traced, sketch, trace
from graphopt.testing.strategies import programs

__all__ = [
    "Checked",
    "Ran",
    "Recorder",
    "Traced",
    "check_pass",
    "check_sequence",
    "minimise",
    "programs",
    "random_graph",
    "random_sequence",
    "sketch",
    "trace",
]
