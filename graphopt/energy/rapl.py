"""Processor and memory through Linux's powercap tree: RAPL counters of Intel, and of AMD since Zen."""

from __future__ import annotations

from pathlib import Path

from graphopt.energy.meter import Meter, Unavailable

POWERCAP = Path("/sys/class/powercap")


class RaplMeter(Meter):
    """Sums the zones ``package-*`` and ``dram``; other zones (core, uncore, psys) lie within or around these.

    The counters see the whole machine, other programs included. They wrap (after some minutes to hours, depending on
    the processor and its load): a window must not be longer than one turn, of which one is accounted for.

    Parameters
    ----------
    root : the powercap tree.

    Raises
    ------
    Unavailable : there is no such tree, it holds no package, or its counters may not be read.
    """

    measured = True

    def __init__(self, root: Path = POWERCAP) -> None:
        if not root.is_dir():
            raise Unavailable(
                "this machine shows no powercap tree",
                where=str(root),
                hint="virtual machines rarely have one; on bare metal: modprobe intel_rapl_common intel_rapl_msr",
            )
        zones = [(zone, _name(zone)) for zone in sorted(root.glob("intel-rapl:*"))]
        self._zones = {
            f"{zone.name} {name}": zone for zone, name in zones if name.startswith("package") or name == "dram"
        }
        if not any("package" in name for name in self._zones):
            found = ", ".join(name for _, name in zones) or "none"
            raise Unavailable("the powercap tree has no processor package", where=f"{root} (zones: {found})")
        self._ranges = {name: _joules(zone / "max_energy_range_uj") for name, zone in self._zones.items()}
        self.read()
        kinds = sorted({name.split()[1].split("-")[0] for name in self._zones}, reverse=True)
        packages = sum("package" in name for name in self._zones)
        counted = f", {packages} packages" if packages > 1 else ""
        self.source = f"RAPL counters ({' and '.join(kinds)}{counted}; the whole machine)"

    def read(self) -> dict[str, float]:
        return {name: _joules(zone / "energy_uj") for name, zone in self._zones.items()}

    def ranges(self) -> dict[str, float]:
        return self._ranges


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _joules(path: Path) -> float:
    try:
        return int(path.read_text(encoding="ascii")) / 1e6
    except PermissionError as error:
        raise Unavailable(
            "the energy counter may not be read",
            where=str(path),
            hint=f"as root: chmod a+r {path.parent}*/energy_uj (until the next boot), or run as root",
        ) from error
    except (OSError, ValueError) as error:
        raise Unavailable(f"the energy counter cannot be read: {error}", where=str(path)) from error
