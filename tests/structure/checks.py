"""What the tests of this folder check: functions from a source tree to a list of violations, one line of text each.

An empty list means that the tree is in order; a folder that does not exist has no violations. Sources are parsed, never
imported, so that a violation is found even where an import would fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parents[2]

# The direction of imports, low to high: a module imports from its own line or from lines above it, never from below.
# One line may import within itself, as long as no cycle arises.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "lazy", "artifacts"),
    ("ir", "energy", "models", "bundle"),
    ("passes",),
    ("pipelines", "capture", "targets", "runtime", "budget", "debug", "plugins"),
    ("compile", "testing"),
    ("",),  # graphopt/__init__.py, the door
    ("cli", "__main__"),
)

MAX_PASS_LINES = 170
MAX_DOOR_LINES = 40
MAX_DOOR_EXPORTS = 14  # "about ten"


def layer(module: str) -> int | None:
    """The index in LAYERS of `graphopt.…`, or None where the design does not name its part."""
    part = [*module.split("."), ""][1]
    return next((i for i, parts in enumerate(LAYERS) if part in parts), None)


def modules(package: Path) -> dict[str, Path]:
    """Every module below `package` by its dotted name; `package` itself is the name of its folder."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(name: str, path: Path, known: set[str]) -> Iterator[tuple[str, int]]:
    """The modules of `known` that module `name` imports, with the line: lazy and typing-only imports count as well."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((m, node.lineno) for m in [nearest(alias.name, known)] if m)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, *([base] if base else [])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                target = target if target in known else nearest(base, known) or ""
                if target and target != name:
                    yield target, node.lineno


def nearest(name: str, known: set[str]) -> str | None:
    """`name`, or the longest prefix of it that is a known module."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def import_graph(package: Path) -> networkx.DiGraph:
    """Importer → imported, each edge with the `line` of its first import."""
    found = modules(package)
    graph = networkx.DiGraph()
    graph.add_nodes_from(found)
    for name, path in found.items():
        for target, line in imports(name, path, set(found)):
            if not graph.has_edge(name, target):
                graph.add_edge(name, target, line=line)
    return graph


def check_direction(package: Path) -> list[str]:
    """Imports run one way, along LAYERS, and every part of the package has its place there."""
    violations = [
        f"{name}: not in the layout; give it a place in LAYERS ({Path(__file__).name}) and in the documentation"
        for name in modules(package)
        if layer(name) is None
    ]
    for importer, imported, line in import_graph(package).edges(data="line"):
        high, low = layer(importer), layer(imported)
        if high is not None and low is not None and low > high:
            violations.append(f"{importer}:{line}: imports {imported}, which is above it")
    return violations


def check_pass_isolation(package: Path) -> list[str]:
    """A pass imports no other pass; `base` and modules that start with `_` are shared."""

    def is_pass(name: str) -> bool:
        head, _, stem = name.rpartition(".")
        return head == f"{package.name}.passes" and stem != "base" and not stem.startswith("_")

    return [
        f"{importer}:{line}: a pass imports the pass {imported}; share through ir or through a module _like_this"
        for importer, imported, line in import_graph(package).edges(data="line")
        if is_pass(importer) and is_pass(imported)
    ]


def check_cycles(package: Path) -> list[str]:
    """No import cycle, neither between modules nor between the parts of the package."""
    graph = import_graph(package)
    parts = networkx.DiGraph()
    for importer, imported in graph.edges:
        a, b = (".".join(name.split(".")[:2]) for name in (importer, imported))
        if a != b:
            parts.add_edge(a, b)
    found = [
        sorted(component)
        for g in (graph, parts)
        for component in networkx.strongly_connected_components(g)
        if len(component) > 1
    ]
    return [f"import cycle: {', '.join(c)}" for i, c in enumerate(found) if c not in found[:i]]


def check_relative(package: Path) -> list[str]:
    """Imports inside `passes` and `targets` are relative: through the links at the root they then fail loudly."""
    violations = []
    for name, path in modules(package).items():
        if name.split(".")[1:2] not in (["passes"], ["targets"]):
            continue
        for node in ast.walk(parse(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            violations += [
                f"{name}:{node.lineno}: imports {n} absolutely"
                for n in names
                if isinstance(node, ast.stmt) and n.split(".")[0] == package.name
            ]
    return violations


def check_printing(package: Path) -> list[str]:
    """Only `cli` prints: elsewhere no `print`, no rich, no typer, no writing to the standard streams."""
    violations = []
    for name, path in modules(package).items():
        if layer(name) == layer(f"{package.name}.cli"):
            continue
        for node in ast.walk(parse(path)):
            what = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                what = "calls print"
            elif isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"):
                if isinstance(node.value, ast.Name) and node.value.id == "sys":
                    what = f"uses sys.{node.attr}"
            elif isinstance(node, ast.Import):
                what = next((f"imports {a.name}" for a in node.names if root_of(a.name) in ("rich", "typer")), None)
            elif isinstance(node, ast.ImportFrom) and not node.level and root_of(node.module) in ("rich", "typer"):
                what = f"imports {node.module}"
            if what and isinstance(node, (ast.expr, ast.stmt)):
                violations.append(f"{name}:{node.lineno}: {what}; only cli prints")
    return violations


def root_of(module: str | None) -> str:
    return (module or "").split(".")[0]


def check_door(package: Path) -> list[str]:
    """The door is short, and what it exports is written out in `__all__`."""
    path = package / "__init__.py"
    if not path.exists():
        return []
    lines = len(path.read_text(encoding="utf-8").splitlines())
    violations = [f"{path.name}: {lines} lines, at most {MAX_DOOR_LINES}"] if lines > MAX_DOOR_LINES else []
    exports = assigned(parse(path), "__all__")
    if not isinstance(exports, (ast.List, ast.Tuple)):
        return [*violations, f"{path.name}: no literal __all__"]
    if len(exports.elts) > MAX_DOOR_EXPORTS:
        violations.append(f"{path.name}: {len(exports.elts)} exports, at most {MAX_DOOR_EXPORTS}")
    return violations


def assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """The value of the last assignment to `name` at the top of a module."""
    value = None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            assert isinstance(node, (ast.Assign, ast.AnnAssign))
            value = node.value
    return value


def pass_files(package: Path) -> list[Path]:
    """The files that are passes: not `base`, not those that start with `_`."""
    files = sorted((package / "passes").glob("*.py"))
    return [f for f in files if not f.name.startswith("_") and f.stem != "base"]


def snake_case(name: str) -> str:
    """The file name of a class.

    >>> snake_case("HoistRequest"), snake_case("MergeQKV"), snake_case("FoldConv2dBias")
    ('hoist_request', 'merge_qkv', 'fold_conv2d_bias')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def is_frozen_dataclass(node: ast.ClassDef) -> bool:
    """Whether `@dataclass(frozen=True, …)` stands above a class."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            function = decorator.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            frozen = (k.value for k in decorator.keywords if k.arg == "frozen")
            if name == "dataclass" and any(isinstance(v, ast.Constant) and v.value is True for v in frozen):
                return True
    return False


def check_pass_names(root: Path) -> list[str]:
    """One name everywhere: file, class, PASSES, test, golden folder, documentation."""
    package = root / "graphopt"
    files = pass_files(package)
    listed = listed_passes(package / "passes" / "__init__.py")
    if listed is None:
        return ["passes/__init__.py: PASSES is not a literal tuple of classes"] if files else []
    documented = root / "docs" / "passes.md"
    text = documented.read_text(encoding="utf-8") if documented.exists() else ""
    violations, classes = [], []
    for path in files:
        name = path.stem
        public = [n for n in parse(path).body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        if len(public) != 1:
            found = ", ".join(n.name for n in public) or "none"
            violations.append(f"passes/{path.name}: needs exactly one public class, has {found}")
            continue
        (node,) = public
        classes.append(node.name)
        if not is_frozen_dataclass(node):
            violations.append(f"passes/{path.name}: {node.name} is not a frozen dataclass")
        if snake_case(node.name) != name:
            violations.append(f"passes/{path.name}: {node.name} belongs in {snake_case(node.name)}.py")
        if node.name not in listed:
            violations.append(f"passes/__init__.py: PASSES lacks {node.name}")
        if not (root / "tests" / "passes" / f"test_{name}.py").is_file():
            violations.append(f"tests/passes/test_{name}.py: missing")
        golden = root / "tests" / "passes" / "golden" / name
        if not golden.is_dir() or not any(golden.iterdir()):
            violations.append(f"tests/passes/golden/{name}/: missing or empty")
        if f"\n## {name}\n" not in f"\n{text}":
            violations.append(f"docs/passes.md: no section {name}: run python scripts/pass_reference.py")
    violations += [f"passes/__init__.py: PASSES names {c}, which no file defines" for c in listed if c not in classes]
    violations += [f"passes/__init__.py: PASSES repeats {c}" for c in sorted(set(listed)) if listed.count(c) > 1]
    stems = {path.stem for path in files}
    for golden in sorted((root / "tests" / "passes" / "golden").glob("*/")):
        if golden.name not in stems and not golden.name.startswith("_"):
            violations.append(f"tests/passes/golden/{golden.name}/: there is no such pass")
    return violations


def listed_passes(init: Path) -> list[str] | None:
    """The names in the literal tuple PASSES, or None where there is no such tuple."""
    value = assigned(parse(init), "PASSES") if init.exists() else None
    if not isinstance(value, ast.Tuple) or not all(isinstance(e, ast.Name) for e in value.elts):
        return None
    return [e.id for e in value.elts if isinstance(e, ast.Name)]


def check_pass_sizes(package: Path) -> list[str]:
    """A pass is one idea and fits on a few screens."""
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in pass_files(package)}
    return [f"passes/{p.name}: {n} lines, at most {MAX_PASS_LINES}" for p, n in sizes.items() if n > MAX_PASS_LINES]


def tracked_files(root: Path) -> list[Path]:
    """The files that git tracks and that exist, links left out."""
    out = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    files = [root / name for name in out.split("\0") if name]
    return [f for f in files if f.is_file() and not f.is_symlink()]


# Someone's own folder, with something below it. `/tmp`, `/usr` and the like mean the same on every machine.
MACHINE_PATH = re.compile(r"(?<![\w.:/}~-])/(?:home/\w|root/|Users/\w|workspace/|work/|mnt/\w|opt/\w|media/\w)[\w./-]*")


def check_machine_paths(files: list[Path]) -> list[str]:
    """No text file names a folder of one particular machine."""
    violations = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and pictures
        for number, line in enumerate(text.splitlines(), 1):
            if match := MACHINE_PATH.search(line):
                violations.append(f"{path}:{number}: names {match.group()}")
    return violations
