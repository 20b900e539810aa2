from __future__ import annotations

import pytest

from graphopt.errors import UsageError
from graphopt.ir.stages import placement, stage_name
from graphopt.passes import Tabulate
from graphopt.testing import Traced, check_pass, sketch
from tests.goldens import Golden


def modulation() -> Traced:
    return sketch(
        """
        arange = ops.aten.arange.start(0, 4, dtype=torch.float32)
        angle = ops.aten.mul.Tensor(t, arange)
        sin = ops.aten.sin.default(angle)
        linear = ops.aten.linear.default(sin, w)
        mixed = ops.aten.add.Tensor(linear, c)
        silu = ops.aten.silu.default(mixed)
        mul = ops.aten.mul.Tensor(x, linear)
        add = ops.aten.add.Tensor(mul, silu)
        return (add,)
        """,
        x="f32[2, 8]",
        t="time f32[]",
        c="condition f32[2, 8]",
        w="weight f32[8, 4]",
    )


def places(pass_: Tabulate) -> dict[str, str]:
    checked = check_pass(pass_, modulation().program)
    return {node.name: stage_name(placement(node)) for node in checked.program.calls()}


def test_modulation(golden: Golden) -> None:
    found = places(Tabulate())
    assert [name for name, stage in found.items() if stage == "schedule"] == ["arange", "angle", "sin", "linear"]
    assert [name for name, stage in found.items() if stage == "request_schedule"] == ["mixed", "silu"]
    golden(modulation().rewritten(Tabulate()).body)


def test_rows_count() -> None:
    # linear takes 32 bytes per row, silu 64
    assert places(Tabulate(steps=10, max_bytes=640))["silu"] == "request_schedule"
    found = places(Tabulate(steps=10, max_bytes=320))
    assert (found["linear"], found["silu"]) == ("schedule", "step")
    checked = check_pass(Tabulate(steps=11, max_bytes=320), modulation().program)
    assert any(
        reason.startswith("the stage would keep 352 bytes, more than max_bytes=320") for reason in checked.reasons
    )


def test_refuses_views_of_inputs() -> None:
    body = "view = ops.aten.view.default(t, [1, 2])\nadd = ops.aten.add.Tensor(x, view)\nreturn (add,)"
    checked = check_pass(Tabulate(), sketch(body, x="f32[2, 2]", t="time f32[2]").program)
    assert (checked.fired, checked.reasons) == (0, ["it is a view of an input: keeping it saves no work"])


def test_refuses_what_is_cheaper_to_recompute() -> None:
    body = """
        expand = ops.aten.expand.default(t, [10, 8])
        clone = ops.aten.clone.default(expand)
        add = ops.aten.add.Tensor(x, clone)
        return (add,)
    """
    checked = check_pass(Tabulate(dispatch_bytes=0), sketch(body, x="f32[10, 8]", t="time f32[8]").program)
    assert checked.reasons[-1] == "keeping it takes 320 bytes and saves the work of moving 32"


def test_a_schedule_has_timesteps() -> None:
    with pytest.raises(UsageError, match="at least one timestep, not steps=0"):
        Tabulate(steps=0)
