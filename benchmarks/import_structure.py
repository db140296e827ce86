"""Counts floors, imports upward and circles among the files of the package.

    python benchmarks/import_structure.py [FOLDER]

The rooms are the folders of `fsa/`, on the floors that `FLOORS` lists; a file may
import from its own floor and from those below. Imports are read from the syntax, those
inside functions too. FOLDER is a checkout, by default this one.
"""

import ast
import json
import pathlib
import sys

FLOORS = (
    (
        "fsa.errors",
        "fsa.installation",
        "fsa.bars",
        "fsa.digests",
        "fsa.exits",
        "fsa.folders",
        "fsa.json_files",
        "fsa.sizes",
        "fsa.text_tables",
        "fsa.latent",
        "fsa.episodes",
    ),
    ("fsa.losses", "fsa.conditioning"),
    ("fsa.parallel",),
    ("fsa.language",),
    ("fsa.data",),
    ("fsa.models", "fsa.cost_model"),
    ("fsa.training",),
    ("fsa.inference",),
    ("fsa.evaluation",),
    ("fsa.recipes",),
    ("fsa.sweeps", "fsa.presets", "fsa.rivals", "fsa.serving", "fsa.examples"),
    ("fsa.commands", "fsa.__main__"),
)


def imports_of(root: pathlib.Path) -> dict[str, set[str]]:
    """Returns module -> modules of the package that it imports."""
    files = {}
    for path in sorted((root / "fsa").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        files[name.removesuffix(".__init__")] = path
    return {name: _imports(name, path, files) for name, path in files.items()}


def _imports(name: str, path: pathlib.Path, files: dict) -> set[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            # An import of a module from its package does not count for `__init__`.
            found |= inside & files.keys() or {base}
    return (found & files.keys()) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the sets of modules that import each other in a circle (Tarjan 1972)."""
    index, low, stack, result = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = []
            while node not in component:
                component.append(stack.pop())
            if len(component) > 1:
                result.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return result


def floor_of(module: str) -> int | None:
    """Returns the floor of a module, None if its room is not listed."""
    for number, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return number
    return None


def measure(root: pathlib.Path) -> dict:
    """Returns the counts of floors, upward imports and circles, as JSON."""
    graph = imports_of(root)
    upward = [
        f"{module} -> {other}"
        for module, others in graph.items()
        for other in others
        if None not in (floor_of(module), floor_of(other))
        and floor_of(other) > floor_of(module)
    ]
    homeless = [
        m for m in graph if m.startswith("fsa.") and floor_of(m) is None and m != "fsa"
    ]
    lines = sum(
        len(path.read_text().splitlines()) for path in (root / "fsa").rglob("*.py")
    )
    return {
        "files": len(graph),
        "lines": lines,
        "floors": len(FLOORS),
        "upward": sorted(upward),
        "circles": circles(graph),
        "without_floor": homeless,
    }


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1]
    print(json.dumps(measure(pathlib.Path(folder).resolve()), indent=1))
