"""The page that is packaged is what viewer/ builds."""

from __future__ import annotations

import colorsys
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from graphopt.debug.viz.html import STATIC
from graphopt.debug.viz.palette import COLOURS
from tests.structure.checks import ROOT, tracked_files
from tests.viz.conftest import need

VIEWER = ROOT / "viewer"


def test_the_bundle_belongs_to_the_sources() -> None:
    digests = json.loads((STATIC / "sources.json").read_text(encoding="utf-8"))
    found = {name: hashlib.sha256((VIEWER / name).read_bytes()).hexdigest() for name in digests}
    assert found == digests, "run `npm ci && npm run build` in viewer/"
    sources = {file.relative_to(VIEWER).as_posix() for file in VIEWER.joinpath("src").rglob("*") if file.is_file()}
    assert sources <= set(digests), "run `npm ci && npm run build` in viewer/"


def test_the_bundle_is_as_it_was_built() -> None:
    digests = json.loads((STATIC / "bundle.json").read_text(encoding="utf-8"))
    assert set(digests) == {"report.css", "report.js"}
    found = {name: hashlib.sha256((STATIC / name).read_bytes()).hexdigest() for name in digests}
    assert found == digests, "run `npm ci && npm run build` in viewer/"


def colour_of(text: str) -> tuple[float, float]:
    """Hue and saturation of ``#rrggbb``."""
    red, green, blue = (int(text[place : place + 2], 16) / 255 for place in (1, 3, 5))
    hue, _, saturation = colorsys.rgb_to_hls(red, green, blue)
    return 360 * hue, saturation


def test_stages_have_the_hues_of_the_pictures() -> None:
    style = (VIEWER / "src/style.css").read_text(encoding="utf-8")
    theme = (VIEWER / "src/theme.ts").read_text(encoding="utf-8").partition("FILLS")[2].partition("SURFACE")[0]
    for stage, colour in COLOURS.items():
        drawn = re.findall(rf'\b{stage}: "(#\w+)"', theme)
        assert len(drawn) == 2 and re.findall(rf"--{stage}: (#\w+)", style) == drawn, stage  # light and dark
        (hue, saturation), found = colour_of(colour), [colour_of(one) for one in drawn]
        if saturation == 0:
            assert all(pale < 0.15 for _, pale in found), stage
        else:
            assert all(abs(other - hue) < 20 for other, _ in found), stage


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((VIEWER / "package-lock.json").read_text(encoding="utf-8"))
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
    assert all("integrity" in entry for name, entry in lock["packages"].items() if name)


def test_every_bundled_package_has_its_licence() -> None:
    bundled = json.loads((VIEWER / "package.json").read_text(encoding="utf-8"))["dependencies"]
    text = (STATIC / "THIRD_PARTY_LICENSES.txt").read_text(encoding="utf-8")
    for name, version in bundled.items():
        assert f"{name} {version} (" in text


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_only_ci_insists_on_programs(ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="Chromium is not on the PATH"):
        need(None, "Chromium")


@pytest.mark.slow
def test_building_gives_the_same_files(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path / "viewer"
    for file in tracked_files(ROOT):
        if file.is_relative_to(VIEWER):
            target = folder / file.relative_to(VIEWER)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
    ready = subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=folder, capture_output=True, text=True)
    if ready.returncode:
        pytest.skip(f"npm cannot fetch the packages here: {ready.stderr.strip().splitlines()[-1]}")
    subprocess.run(["npm", "run", "check"], cwd=folder, check=True, capture_output=True)
    subprocess.run(["node", "build.mjs", str(tmp_path / "out")], cwd=folder, check=True, capture_output=True)
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (STATIC / file.name).read_bytes(), file.name
