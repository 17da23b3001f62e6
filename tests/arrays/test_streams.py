"""Which stream a call runs on, with stand-ins for the streams of CuPy and PyTorch."""

import sys
from types import SimpleNamespace

import pytest

from cuattn.arrays.streams import current_stream_of, hand_over
from cuattn.errors import ArgumentError


class Protocol:
    def __cuda_stream__(self):
        return (0, 99)


class Tensor:
    device = "cuda:1"

    def get_device(self):
        return 1


@pytest.fixture(params=["by its address", "as an object"])
def torch(request, monkeypatch):
    """A module whose current stream on cuda:1 is 77; not every version names it shortly."""
    streams = {"cuda:1": SimpleNamespace(cuda_stream=77)}
    shortly = {"_cuda_getCurrentRawStream": {1: 77}.__getitem__}
    module = SimpleNamespace(
        Tensor=Tensor,
        cuda=SimpleNamespace(current_stream=streams.__getitem__),
        _C=SimpleNamespace(**shortly if request.param == "by its address" else {}),
    )
    monkeypatch.setitem(sys.modules, "torch", module)


@pytest.fixture
def cupy(monkeypatch):
    """CuPy's current stream 55, on a computer that may have no GPU."""
    pytest.importorskip("cupy")
    monkeypatch.setattr("cupy.cuda.get_current_stream", lambda: SimpleNamespace(ptr=55))


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize(
    ("explicit", "address"),
    [
        (0, 0),
        (1, 1),
        (0x7F00_0000, 0x7F00_0000),
        (Protocol(), 99),
        (SimpleNamespace(ptr=12), 12),
        (SimpleNamespace(cuda_stream=13), 13),
    ],
)
def test_explicit_stream_wins(explicit, address):
    assert current_stream_of(Tensor(), explicit) == address


@pytest.mark.parametrize("wrong", [-1, True, 1.0, "default", object()])
def test_what_is_no_stream_is_refused(wrong):
    with pytest.raises(ArgumentError, match="stream must be an address"):
        current_stream_of(None, wrong)


@pytest.mark.usefixtures("torch", "cupy")
def test_tensors_use_torchs_stream_and_others_cupys():
    assert current_stream_of(Tensor()) == 77
    assert current_stream_of(object()) == 55


@pytest.mark.usefixtures("cupy")
def test_torch_is_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert current_stream_of(Tensor()) == 55
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    ("stream", "capturing", "told"),
    [(0, False, 1), (1, False, 1), (55, False, 55), (55, True, -1)],
)
def test_producers_are_told_dlpacks_name_of_the_stream(monkeypatch, stream, capturing, told):
    pytest.importorskip("cupy")
    monkeypatch.setattr("cupy.cuda.runtime.streamIsCapturing", lambda ptr: capturing)
    assert hand_over(stream) == told
