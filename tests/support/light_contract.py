"""A contract for import-linter: what loads with some modules.

import-linter's own contracts count imports inside functions, too, which are what keeps a module light.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from importlinter.application.contract_utils import AlertLevel, remove_ignored_imports
from importlinter.domain.helpers import module_expressions_to_modules


class LightContract(Contract):
    """No `slow` package loads with any of the `modules`, neither directly nor through what they import."""

    modules = fields.SetField(subfield=fields.ModuleExpressionField())
    slow = fields.SetField(subfield=fields.StringField())
    ignore_imports = fields.SetField(subfield=fields.ImportExpressionField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Follow the imports that take place at once, from each module to the first slow package."""
        remove_ignored_imports(graph, self.ignore_imports, AlertLevel.ERROR)
        chains: list[list[str]] = []
        for module in sorted(module.name for module in module_expressions_to_modules(graph, self.modules)):
            chain = self._chain_to_slow(graph, module)
            if chain:
                chains.append(chain)
        return ContractCheck(kept=not chains, metadata={"chains": chains})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print how each slow package is reached."""
        for chain in check.metadata["chains"]:
            output.print_error(" -> ".join(chain))

    def _chain_to_slow(self, graph: ImportGraph, start: str) -> list[str]:
        came_from: dict[str, str | None] = {start: None}
        waiting = [start]
        while waiting:
            module = waiting.pop(0)
            # A module loads with its packages.
            loaded = {module.rpartition(".")[0]} & graph.modules | graph.find_modules_directly_imported_by(module)
            for imported in sorted(loaded - came_from.keys()):
                details = graph.get_import_details(importer=module, imported=imported)
                if details and not any(_is_at_once(graph, detail) for detail in details):
                    continue
                came_from[imported] = module
                if imported in self.slow:
                    return _path(came_from, imported)
                if imported.startswith("tomoscout"):
                    waiting.append(imported)
        return []


def _is_at_once(graph: ImportGraph, detail: Any) -> bool:
    """Whether an import takes place when its module loads: it is not indented."""
    importer = detail["importer"].split(".")
    package = __import__(importer[0]).__path__[0]
    stem = Path(package, *importer[1:])
    path = stem.with_suffix(".py") if stem.with_suffix(".py").exists() else stem / "__init__.py"
    line = path.read_text(encoding="utf-8").splitlines()[detail["line_number"] - 1]
    return not line[0].isspace()


def _path(came_from: dict[str, str | None], end: str) -> list[str]:
    chain: list[str] = []
    place: str | None = end
    while place is not None:
        chain.insert(0, place)
        place = came_from[place]
    return chain
