"""No module of experiments needs, directly or by way of others, one that needs it; not even within a function."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "experiments"
MODULES = {".".join(path.relative_to(FOLDER.parent).with_suffix("").parts): path for path in FOLDER.rglob("*.py")}


def run_imports(tree: ast.AST) -> list[ast.ImportFrom]:
    """All relative imports that are carried out when the module or a function of it runs."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            continue
        found += [node] if isinstance(node, ast.ImportFrom) and node.level else run_imports(node)
    return found


def needed(name: str) -> set[str]:
    folder = name.split(".") if MODULES[name].stem == "__init__" else name.split(".")[:-1]
    folder = folder[:-1] if MODULES[name].stem == "__init__" else folder
    wanted = set()
    for node in run_imports(ast.parse(MODULES[name].read_text())):
        base = ".".join([*folder[: len(folder) - node.level + 1], *([node.module] if node.module else [])])
        for place in (base, *(f"{base}.{alias.name}" for alias in node.names)):
            wanted |= {place, f"{place}.__init__"} & MODULES.keys()
    return wanted - {name}


def test_imports_go_in_no_circle():
    graph = {name: needed(name) for name in MODULES}

    assert "experiments.job" in graph["experiments.train"]  # within a function
    assert "experiments.comparison.curves" in graph["experiments.wandb_run"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
