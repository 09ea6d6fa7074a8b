"""Tests. A package, because torch-fidelity installs one of the same name, which must not come first."""
