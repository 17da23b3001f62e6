"""The examples for PyTorch, as programs and by their parts; what they import has tests of its own.

On the GPU if there is one that PyTorch can use, else with tensors in host memory.
"""

import pytest
from helpers.example_modules import example, examples

pytestmark = pytest.mark.needs("torch")

torch_op = example("torch_op")
torch_sdpa = example("torch_sdpa")


def test_layers_left_out_have_no_error(torch_sdpa):
    torch = torch_sdpa.torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model, x = (
        torch_sdpa.small_encoder(2, 128, device=device),
        torch.randn(1, 40, 128, device=device),
    )
    error, calls = torch_sdpa.compare(model, x, ["int8"])["int8"]
    assert 0 < error < 0.01
    assert (calls.schemes, calls.fallback) == ({"int8": 2}, {})
    error, calls = torch_sdpa.compare(model, x, ["int8"], ["layers.*"])["int8"]
    assert error == 0
    assert calls.fallback == {"left out": 2}


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_module_is_one_graph(torch_op, dynamic):
    torch = torch_op.torch
    torch._dynamo.reset()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    block = torch_op.Block(heads=2, head_dim=32).to(device)
    # With fullgraph=True a graph that breaks is an error.
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with torch.no_grad():
        for tokens in (24, 56):
            x = torch.randn(2, tokens, 64, device=device)
            torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
            assert (block(x) - x).abs().max() > 0.01


def test_programs_say_what_came_out(torch_op, torch_sdpa, capsys):
    torch_op.main(["--tokens", "40", "--backend", "aot_eager"])
    assert "compiled and eager differ by at most 0" in capsys.readouterr().out
    torch_sdpa.main(["--tokens", "40", "--schemes", "int8"])
    assert "3 by cuattn (int8), 1 not (left out)" in capsys.readouterr().out


def test_graph_program_says_that_it_needs_a_gpu(monkeypatch):
    with examples("torch_graph") as torch_graph:
        monkeypatch.setattr(torch_graph.torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit, match="needs a GPU that PyTorch can use"):
            torch_graph.main()


@pytest.mark.gpu
@pytest.mark.usefixtures("torch")
def test_graph_program_says_what_came_out(capsys):
    with examples("torch_graph") as torch_graph:
        torch_graph.main()
    assert "replayed and eager are the same" in capsys.readouterr().out
