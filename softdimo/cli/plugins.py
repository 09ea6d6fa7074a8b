"""`softdimo plugins`: what is installed, and whether it works."""

from __future__ import annotations

from typing import Annotated

import typer

from softdimo import registry
from softdimo.errors import PluginError

app = typer.Typer(help="Installed components.", no_args_is_help=True, rich_markup_mode="rich")
Kind = Annotated[str | None, typer.Argument(help="Only this kind (teacher, loss, reward, ...).", show_default=False)]


def _kinds(kind: str | None) -> tuple[str, ...]:
    if kind is not None and kind not in registry.KINDS:
        near = registry.suggest(kind, registry.KINDS)
        raise PluginError(f"there is no kind `{kind}`{near} (kinds: {', '.join(registry.KINDS)})")
    return registry.KINDS if kind is None else (kind,)


@app.command("list")
def list_(kind: Kind = None) -> None:
    """List the installed components without importing them."""
    rows = [("kind", "use", "distribution", "version")]
    for each in _kinds(kind):
        entries = registry.installed(each)
        names = [e.name for e in entries]
        for entry in entries:
            owner = registry.distribution(entry)
            use = entry.name if names.count(entry.name) == 1 else f"{owner}:{entry.name}"
            rows.append((each, use, owner, registry.version(entry)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def doctor(kind: Kind = None) -> None:
    """Import every component and say which are broken, and what to do. Exit code 1 if any is."""
    broken = 0
    for each in _kinds(kind):
        entries = registry.installed(each)
        names = [e.name for e in entries]
        for entry in entries:
            owner = registry.distribution(entry)
            if names.count(entry.name) > 1:
                typer.echo(f"note    {each} {entry.name}: several distributions have it; write {owner}:{entry.name}")
            try:
                spec = registry.load(each, entry)
                try:
                    spec.model_json_schema()
                except Exception as error:
                    raise PluginError(f"its settings have no schema ({error}); tell the authors of {owner}") from error
            except PluginError as error:
                broken += 1
                typer.echo(f"broken  {each} {entry.name}: {error}")
            else:
                doc = (spec.__doc__ or "").strip().splitlines()
                typer.echo(f"ok      {each} {entry.name}: {doc[0] if doc else owner}")
    if broken:
        typer.echo(f"{broken} broken", err=True)
        raise typer.Exit(1)
