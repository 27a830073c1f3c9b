"""The rules of the house, checked: direction of imports, size of files, purity of imports, declared names, documented commands.

Reads sources as syntax trees; runs nothing of the package except its imports, in a process of their own.
"""

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dynamo_gpu_ft import config, errors, metrics
from dynamo_gpu_ft.cli.main import COMMANDS
from dynamo_gpu_ft.metrics import table

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dynamo_gpu_ft"

VOCABULARY = {"errors", "events", "topology", "config", "units"}
MIDDLE = {"kv", "health", "experts"}
BELOW: dict[str, set[str]] = {
    "metrics": VOCABULARY | {"__version__"},  # it only listens
    "native": VOCABULARY,
    **{room: VOCABULARY | {"native", "metrics"} for room in MIDDLE},
    "recovery": VOCABULARY | {"native", "metrics"} | MIDDLE,
    "engines": VOCABULARY | {"native", "metrics", "recovery"} | MIDDLE,
    "nvrx": VOCABULARY | {"native", "metrics", "recovery"} | MIDDLE,
    "cli": VOCABULARY | {"native", "metrics", "recovery", "engines", "nvrx"} | MIDDLE,
    **dict.fromkeys(VOCABULARY, VOCABULARY),
    "__main__": {"cli"},
    "__init__": set(),
}
ENGINES = {"vllm": "vllm", "sglang": "sglang", "tensorrt_llm": "trtllm", "dynamo": "dynamo"}

SOURCE_FOLDERS = ["csrc", "kernels", PACKAGE, "tests", "bench", "requirements", ".ci"]
SOURCE_SUFFIXES = {".py", ".pyi", ".c", ".cc", ".cpp", ".h", ".hpp", ".inc", ".cu", ".cuh", ".sh"}
MAX_LINES = 400


def sources(*suffixes: str) -> list[Path]:
    found = [ROOT / name for name in ("setup.py", "Makefile") if (ROOT / name).exists()]
    for folder in SOURCE_FOLDERS:
        found += [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    wanted = suffixes or (*SOURCE_SUFFIXES, "")
    return [path for path in found if path.suffix in wanted and "__pycache__" not in path.parts]


def modules() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Every module named by an import statement anywhere in a file, absolute; `from a import b` also gives `a.b`."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    return module.split(".")[1]


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def test_imports_go_one_way() -> None:
    wrong = []
    for path in modules():
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        own = parts[0]
        assert own in BELOW or own == "sim", f"{shown(path)}: no such room; see CONTRIBUTING.md"
        if own == "sim":
            continue
        names = {name for name in imports(path) if name.startswith(f"{PACKAGE}.")}
        known = {room(name) for name in names} & (set(BELOW) | {"sim"})
        wrong += [f"{shown(path)} imports {name}" for name in sorted(known - BELOW[own] - {own})]
    assert not wrong


def test_only_the_folder_of_an_engine_imports_that_engine() -> None:
    wrong = []
    for path in modules():
        for name in imports(path):
            folder = ENGINES.get(name.split(".")[0])
            inside = folder is not None and path.is_relative_to(ROOT / PACKAGE / "engines" / folder)
            if folder is not None and not inside:
                wrong.append(f"{shown(path)} imports {name}")
    assert not wrong


def test_no_engine_imports_another_engines_folder() -> None:
    wrong = []
    for path in (ROOT / PACKAGE / "engines").glob("*/**/*.py"):
        own = path.relative_to(ROOT / PACKAGE / "engines").parts[0]
        for name in imports(path):
            parts = name.split(".")
            if parts[:2] == [PACKAGE, "engines"] and len(parts) > 2:
                other = (ROOT / PACKAGE / "engines" / parts[2]).is_dir() and parts[2] != own
                wrong += [f"{shown(path)} imports {name}"] if other else []
    assert not wrong


def test_no_file_is_longer_than_400_lines() -> None:
    long = {shown(path): len(path.read_bytes().splitlines()) for path in sources()}
    assert not {name: lines for name, lines in long.items() if lines > MAX_LINES}


def test_every_module_opens_by_saying_what_it_is_for() -> None:
    silent = [
        path
        for path in sources(".py")
        if path.read_text().strip() and not ast.get_docstring(tree(path))
    ]
    assert not [shown(path) for path in silent]


def test_every_native_file_opens_with_a_comment() -> None:
    native = sources(".cpp", ".h", ".cu", ".cuh", ".inc")
    assert not [shown(p) for p in native if not p.read_text().lstrip().startswith(("//", "/*"))]


PURITY = """
    import sys, os, threading, importlib, logging, traceback
    BLOCKED = ("torch", "nvidia_resiliency_ext", "yaml", "vllm", "sglang", "cupy", "triton", "pynvml", "prometheus_client", "numpy")
    import dataclasses, msgspec, typing, asyncio, multiprocessing
    def check(name):
        class Blocker:
            def find_spec(self, wanted, path=None, target=None):
                if wanted.split(".")[0] in BLOCKED:
                    raise ImportError(f"{wanted} must not be needed to import {name}")
        def no_effect(event, args):
            if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
                raise AssertionError(f"writes {args[0]}")
            if event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen", "socket.bind", "os.fork", "os.putenv"):
                raise AssertionError(event)
        sys.meta_path.insert(0, Blocker())
        sys.addaudithook(no_effect)
        before = set(logging.root.handlers), threading.active_count()
        importlib.import_module(name)
        assert (set(logging.root.handlers), threading.active_count()) == before, "a handler or a thread"
        others = {m for m in sys.modules if m.startswith("dynamo_gpu_ft.")}
        assert name != "dynamo_gpu_ft" or not others, others
    for name in sys.argv[1:]:  # each in a process of its own
        child = os.fork()
        if child == 0:
            try:
                check(name)
            except BaseException as error:
                print(f"{name}: {error!r}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(f"{name}: ended badly", file=sys.stderr, flush=True)
"""


def importable_anywhere() -> list[str]:
    """Modules that need nothing but the requirements: all but the inside of an engine's folder, of which `plugin` is."""
    names = []
    for path in modules():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__main__" or (
            parts[1] == "engines" and len(parts) > 3 and parts[-1] not in ("__init__", "plugin")
        ):
            continue
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_importing_any_module_has_no_effect_and_needs_no_engine() -> None:
    names = importable_anywhere()
    halves = [
        subprocess.Popen(
            [sys.executable, "-B", "-W", "error", "-c", textwrap.dedent(PURITY), *part],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={"HOME": "/nonexistent"}, cwd=ROOT,
        )
        for part in (names[::2], names[1::2])
    ]  # fmt: skip
    said = [half.communicate(timeout=100)[0] for half in halves]
    assert said == ["", ""]
    assert [half.returncode for half in halves] == [0, 0]


def test_every_metric_recorded_is_declared_with_its_kind_and_labels() -> None:
    kinds = {"add": "counter", "set": "gauge", "observe": "histogram"}
    rows = {row.name: row for row in metrics.TABLE}
    wrong, used = [], set()
    for path in modules():
        for call in calls(path):
            if not (isinstance(call.func, ast.Attribute) and call.func.attr in kinds and call.args):
                continue
            first, receiver = call.args[0], ast.unparse(call.func.value)
            if not re.search(r"metrics|recorder|^self$", receiver) or not isinstance(
                first, ast.Constant
            ):
                continue
            row = rows.get(first.value)
            labels = {keyword.arg for keyword in call.keywords} - {"amount", "value"}
            if row is None or row.kind != kinds[call.func.attr] or labels != set(row.labels):
                wrong.append(f"{shown(path)}:{call.lineno}: {ast.unparse(call)}")
            used.add(first.value)
    assert not wrong
    silent = set(rows) - used
    assert not silent, "declared but recorded nowhere"


def test_every_setting_named_anywhere_is_declared_and_every_declared_one_is_used() -> None:
    keys = set(config.Config.__dataclass_fields__)
    documents = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")]
    named = {
        (shown(path), name)
        for path in [*sources(".py", ".cpp", ".h"), *documents]
        for name in re.findall(r"\bDYN_GPU_FT_(?!BUILD_)([A-Z][A-Z0-9_]*)", path.read_text())
    }
    unknown = {(path, name) for path, name in named if name.lower() not in keys}
    # Tests name wrong ones on purpose.
    assert not {(path, name) for path, name in unknown if not path.startswith("tests/")}
    read = {
        node.attr
        for path in modules()
        if path.name != "config.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
    }
    by_name = {name.lower() for path, name in named if path.startswith(PACKAGE)}
    in_config = {"arena_dir", "arena_name"}  # become `arena_path`
    ignored = keys - read - by_name - in_config
    assert not ignored, "declared but read nowhere"


def test_errors_of_ours_are_defined_in_one_place() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    strays = [
        f"{shown(path)}: {node.name}"
        for path in modules()
        if path.name != "errors.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(b).split(".")[-1] in kinds for b in node.bases)
    ]
    assert not strays


def test_every_package_folder_is_packaged() -> None:
    listed = re.search(
        r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M
    )
    assert listed
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in modules()
        if path.name == "__init__.py"
    }
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == folders | {f"{PACKAGE}.kernels"}


def test_no_folder_of_modules_lacks_an_init() -> None:
    assert not {
        shown(path.parent) for path in modules() if not (path.parent / "__init__.py").exists()
    }


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_command_is_mentioned(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not [command for command in COMMANDS if f"dynamo-gpu-ft {command}" not in text]


def test_contributing_names_every_room_and_every_make_target() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = {path.name for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").exists()}
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert len(targets) >= 8
    assert not [name for name in rooms if f"`{name}/`" not in text]
    assert not [name for name in targets if f"make {name}" not in text]


def test_the_readme_shows_a_command_early_and_its_tables_are_those_of_the_code() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in "\n".join(text.splitlines()[:15])
    assert config.markdown_table() in text, (
        "print dynamo_gpu_ft.config.markdown_table() into the README"
    )
    assert table.markdown_table() in text, (
        "print dynamo_gpu_ft.metrics.table.markdown_table() there"
    )
