"""The example for diffusers: a Flux with random weights, and what schemes do to its latents."""

import pytest
from helpers.example_modules import example

pytestmark = [
    pytest.mark.needs("torch", "diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

diffusion = example("diffusion")


def test_errors_of_all_steps_stay_small(diffusion, capsys):
    sizes = ["--side", "8", "--steps", "2", "--layers", "1", "--heads", "1"]
    diffusion.main([*sizes, "--schemes", "int8", "int-flash", "fp16"])
    _, _, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    errors = {name: float(error) for name, error, *_ in rows}
    assert list(errors) == ["PyTorch", "int8", "int-flash", "fp16"]
    assert errors["PyTorch"] == 0
    assert errors["fp16"] < errors["int8"] < errors["int-flash"] < 2
