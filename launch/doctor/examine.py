"""Run the sections of the doctor. Imports neither torch nor NeMo."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from slipway.configs import Refusal, Spec, nearest
from slipway.launch.doctor import sections
from slipway.launch.doctor.finding import Finding


def section_table() -> dict[str, ModuleType]:
    """Every section, by its name, in the order of the report."""
    names = [module.name for module in pkgutil.iter_modules(sections.__path__)]
    modules = {name: importlib.import_module(f"{sections.__name__}.{name}") for name in names}
    return dict(sorted(modules.items(), key=lambda item: item[1].POSITION))


def examine(only: str = "", spec: Spec | None = None) -> list[Finding]:
    """Everything that can be found out without importing torch.

    Args:
        only: the sections to run, separated by commas, as in packages,gpu; empty for all.
        spec: a recipe to compare this machine and its cluster with.

    Raises:
        Refusal: ``only`` names an unknown section.
    """
    table = section_table()
    chosen = [word.strip() for word in only.split(",") if word.strip()] or list(table)
    for word in chosen:
        if word not in table:
            raise Refusal(f"the doctor has no section {word!r}; {nearest(word, table)}")
    return [finding for word in chosen for finding in table[word].findings(spec)]
