"""What each argument of a model is to the sampling loop: by name for known denoisers, by observation for any other.

A wrong role costs speed, never correctness: what a stage keeps is keyed by the values it depends on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from graphopt.capture.calls import Call, CallTaker
from graphopt.errors import RoleError, nearest
from graphopt.ir.program import ROLES, Role

# Argument names of diffusers' denoisers and ControlNets. Names that are not here are state.
TIME_NAMES = frozenset({"timestep", "timesteps", "t", "sigma", "sigmas", "timestep_r", "noise_level"})
CONDITION_NAMES = frozenset(
    {
        "encoder_hidden_states", "encoder_hidden_states_t5", "encoder_hidden_states_image", "encoder_attention_mask",
        "encoder_hidden_states_mask", "attention_mask", "class_labels", "pooled_projections", "pooled_embeds",
        "guidance", "guidance_scale", "img_ids", "txt_ids", "added_cond_kwargs", "prompt_embeds", "prompt_embeds_mask",
        "text_embeds", "text_hidden_states", "image_rotary_emb", "freqs_cis", "rotary_emb", "style",
        "image_meta_size", "text_embedding_mask", "controlnet_cond", "conditioning_scale", "timestep_cond",
        "clip_text_pooled", "clip_text", "clip_img", "effnet", "txt_seq_lens", "img_shapes", "image_embeds",
        "added_time_ids", "fps", "num_frames", "height", "width",
    }
)  # fmt: skip
NUMBERS_AS_TENSORS = TIME_NAMES | {"guidance", "conditioning_scale"}


def roles_by_name(paths: Iterable[str]) -> dict[str, Role]:
    """Roles by the name of the argument a path starts with."""
    return {path: _by_name(path.partition(".")[0]) for path in paths}


def _by_name(argument: str) -> Role:
    if argument in TIME_NAMES:
        return "time"
    return "condition" if argument in CONDITION_NAMES else "state"


def explicit(roles: Mapping[str, str], paths: Sequence[str], known: Mapping[str, Role]) -> dict[str, Role]:
    """`known` roles overridden by the user's, which name an argument or a longer key path.

    Raises RoleError for a role or an argument that does not exist.
    """
    result = dict(known)
    for name, role in sorted(roles.items(), key=lambda entry: len(entry[0])):
        _check_role(name, role)
        hits = [path for path in paths if path == name or path.startswith(f"{name}.")]
        if not hits:
            raise RoleError(f"the model has no tensor argument '{name}'", where="roles", hint=nearest(name, paths))
        result.update(dict.fromkeys(hits, role))  # type: ignore[arg-type]
    return result


def _check_role(name: str, role: str) -> None:
    if role not in ROLES or role == "weight":
        given = [known for known in ROLES if known != "weight"]
        raise RoleError(f"'{role}' is no role of an argument", where=f"roles[{name!r}]", hint=nearest(role, given))


def check_roles(roles: Mapping[str, str], parameters: Sequence[Sequence[str]]) -> None:
    """Raise RoleError for what cannot be a role, or names an argument that none of the compiled modules has."""
    known = {name for names in parameters for name in names}
    for name, role in roles.items():
        _check_role(name, role)
        if name.partition(".")[0] not in known:
            raise RoleError(f"there is no argument '{name}'", where="roles", hint=nearest(name, known))


def observe(requests: Sequence[Sequence[Call]], taker: CallTaker) -> dict[str, Role]:
    """Roles from recorded calls: sampling runs with different seeds and prompts, of three calls or more each.

    ``time`` varies within a request and agrees across requests; ``condition`` is constant within each request; the rest
    is ``state``.

    Raises RoleError when fewer than two requests of three calls are given, or their arguments do not line up.
    """
    if len(requests) < 2 or min(len(calls) for calls in requests) < 3:
        raise RoleError(
            "roles can only be observed over two requests of three calls each",
            where=f"{len(requests)} requests given",
            hint="pass inputs=[[call, call, call], [call, call, call]] or name the roles with roles=",
        )
    first = requests[0][0]
    paths = taker.paths(first)
    if any(call.spec != first.spec for calls in requests for call in calls):
        raise RoleError("the recorded calls pass different arguments", hint="record calls of one kind")
    found: dict[str, Role] = {}
    for position, path in enumerate(paths):
        if not isinstance(first.leaves[position], torch.Tensor):
            continue
        columns = [[call.leaves[position] for call in calls] for calls in requests]
        varies = any(not _same(column[0], value) for column in columns for value in column[1:])
        agrees = all(_same(a, b) for column in columns[1:] for a, b in zip(columns[0], column, strict=False))
        found[path] = ("time" if agrees else "state") if varies else "condition"
    return found


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)
    return bool(left == right)
