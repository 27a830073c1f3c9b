"""The typed stub and the built core say the same: every name of one is in the other, with the same parameters.

Other rooms are written and type-checked against the stub alone.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from door import core

STUBS = [
    ast.parse(Path(core.__file__).with_name(name).read_text())
    for name in (
        "_core.pyi",
        "_backing.pyi",
        "_device.pyi",
        "_disk.pyi",
        "_place.pyi",
        "_watch.pyi",
        "_beats.pyi",
    )
]
NODES = [node for stub in STUBS for node in stub.body]
CLASSES = {node.name: node for node in NODES if isinstance(node, ast.ClassDef)}


def members(node: ast.ClassDef) -> set[str]:
    functions = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    return functions | {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def parameters(function: ast.FunctionDef) -> list[str]:
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [each.arg for each in every if each.arg != "self"]


def told(value: Any) -> list[str]:
    """Parameter names as pybind11 writes them in the first line of a docstring."""
    signature = value.__doc__.splitlines()[0]
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    return [found for found in re.findall(r"(\w+): ", inside) if found not in ("self", "arg0")]


def test_the_module_has_what_the_stub_names_and_nothing_else() -> None:
    named = (
        set(CLASSES)
        | {node.name for node in NODES if isinstance(node, ast.FunctionDef)}
        | {"VERSION", "DIGEST"}
    )
    assert {name for name in vars(core) if not name.startswith("_")} == named


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"CoreError"}))
def test_a_class_has_what_the_stub_says(name: str) -> None:
    built = getattr(core, name)
    public = {each for each in vars(built) if not each.startswith("_")}
    assert public == {each for each in members(CLASSES[name]) if not each.startswith("_")}
    for function in CLASSES[name].body:
        if isinstance(function, ast.FunctionDef):
            assert told(getattr(built, function.name)) == parameters(function), function.name


def test_errors_carry_their_code() -> None:
    assert issubclass(core.CoreError, RuntimeError)
    with pytest.raises(core.CoreError) as caught:
        core.Arena.open("/nonexistent/arena")
    assert caught.value.code == "not_found"


def test_instruction_sets_never_change_a_digest() -> None:
    data = bytes(range(256)) * 40
    by_name: dict[str, set[bytes]] = {}
    for kind, (name, _) in enumerate(core.digest_kinds()):
        by_name.setdefault(name, set()).add(core.digest(data, kind))
    assert all(len(values) == 1 for values in by_name.values())
    assert by_name[core.DIGEST] == {core.digest(data)}
    with pytest.raises(core.CoreError) as caught:
        core.digest(data, len(core.digest_kinds()))
    assert caught.value.code == "not_found"
