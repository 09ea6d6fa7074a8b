"""Components by name: lazy, and every way in which a plugin can be wrong is said with what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from softdimo import API_VERSION, registry
from softdimo.errors import PluginError
from softdimo.spec import Spec
from tests.fakes import distribution

GOOD = "from softdimo.spec import Spec\nclass Thing(Spec):\n    '''A thing.'''\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a fake distribution with rewards; the modules get names that no other test uses."""
    count = 0

    def install(name: str, rewards: dict[str, str], source: str = GOOD, api: str | None = None, **options) -> str:
        nonlocal count
        count += 1
        module = f"registry_{tmp_path.name.replace('-', '_')}_{count}"
        entries = {"softdimo.reward": {k: v.replace("MODULE", module) for k, v in rewards.items()}}
        if api is not None:
            entries["softdimo.api"] = {api: module}
        monkeypatch.syspath_prepend(distribution(tmp_path / name, name, entries, {module: source}, **options))
        return module

    yield install
    for module in [m for m in sys.modules if m.startswith(f"registry_{tmp_path.name.replace('-', '_')}")]:
        del sys.modules[module]


def error(use: str, kind: str = "reward") -> str:
    with pytest.raises(PluginError) as caught:
        registry.find(kind, use)
    assert caught.value.code == 2
    return str(caught.value)


def test_only_the_plugin_that_is_named_is_imported(install):
    good = install("good", {"mine": "MODULE:Thing"})
    other = install("other", {"theirs": "MODULE:Thing"})
    assert "mine" in [e.name for e in registry.installed("reward")]
    assert good not in sys.modules
    found = registry.find("reward", "mine")
    assert issubclass(found, Spec)
    assert found.__module__ == good
    assert other not in sys.modules


def test_a_broken_plugin_stops_only_those_who_use_it(install):
    install("broken", {"broken": "MODULE:Thing"}, "raise ZeroDivisionError('oh')")
    install("good", {"mine": "MODULE:Thing"})
    assert registry.find("reward", "mine").__name__ == "Thing"
    assert error("broken") == (
        "the reward `broken` of broken is broken (ZeroDivisionError: oh); update or repair broken"
    )


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import sys; sys.exit(3)", "is broken (SystemExit: 3)"),
        ("class Other: pass", "is broken (AttributeError: "),
        ("def (", "is broken (SyntaxError: "),
        ("Thing = 3", "is not a subclass of softdimo.spec.Spec but 3"),
        ("class Thing: pass", "is not a subclass of softdimo.spec.Spec but <class "),
        ("from softdimo.spec import Spec\nclass Thing(Spec):\n    x: 'Nowhere'\n    y = 3", "is broken (Pydantic"),
        ("import nowhere_at_all", "cannot be imported (No module named 'nowhere_at_all'); install what it needs"),
    ],
)
def test_plugins_that_cannot_be_used(install, source, what):
    install("shaky", {"shaky": "MODULE:Thing"}, source)
    assert error("shaky").startswith(f"the reward `shaky` of shaky {what}")


def test_a_missing_extra_says_what_to_install(install):
    install("extra", {"rich": "MODULE:Thing [vision,text]"}, "import nowhere_at_all", extras=("vision", "text"))
    assert error("rich") == (
        "the reward `rich` of extra cannot be imported (No module named 'nowhere_at_all'); "
        "pip install 'extra[vision,text]'"
    )


def test_two_distributions_with_one_name(install):
    install("one", {"same": "MODULE:Thing"})
    module = install("two", {"same": "MODULE:Thing"})
    assert error("same") == (
        "several distributions have a reward called `same`; write `use: one:same` or `use: two:same`"
    )
    assert registry.find("reward", "two:same").__module__ == module
    assert error("three:same").startswith("no reward is called `three:same`; did you mean `")


def test_unknown_names(install):
    install("good", {"brightness": "MODULE:Thing"})
    message = error("Brightnes")
    assert message.startswith("no reward is called `Brightnes`; did you mean `brightness`? (installed: ")
    assert "brightness" in message.split("installed: ")[1]
    assert "did you mean" not in error("zzzzzz")
    assert error("").startswith("no reward is called ``")
    assert error("x", kind="nothing").endswith("(installed: none)")


def test_the_plugin_interface_is_one_integer(install):
    install("fits", {"fits": "MODULE:Thing"}, api=str(API_VERSION))
    module = install("old", {"old": "MODULE:Thing"}, "raise SystemError('imported')", api="0")
    assert registry.find("reward", "fits").__name__ == "Thing"
    assert error("old") == (
        f"the reward `old` of old was made for plugin interface 0, not {API_VERSION}; update old or softdimo"
    )
    assert module not in sys.modules


def test_the_registry_imports_no_torch():
    code = (
        "import sys; from softdimo import registry; [registry.installed(k) for k in registry.KINDS]; "
        "print([m for m in ('torch', 'pydantic', 'softdimo_plugins') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_component_of_this_distribution_can_be_imported():
    for kind in registry.KINDS:
        for entry in registry.installed(kind):
            if registry.distribution(entry) == "softdimo":
                spec = registry.load(kind, entry)
                assert spec.__doc__, f"{kind} {entry.name} has no docstring"
                for name, field in spec.model_fields.items():
                    assert field.description, f"{kind} {entry.name}: {name} has no docstring"
