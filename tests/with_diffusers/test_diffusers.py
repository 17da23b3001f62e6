"""`cuattn.diffusers`: tiny models with random weights, on a GPU if there is one, and PyTorch's."""

from importlib import import_module
from types import SimpleNamespace

import pytest
from helpers.torch_calls import device_here, error, own

import cuattn
from cuattn.errors import ArgumentError, KeywordError

pytestmark = [
    pytest.mark.needs("torch", "diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

SIZES = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4}


@pytest.fixture(scope="module")
def cd():
    return import_module("cuattn.diffusers")


@pytest.fixture(scope="module")
def diffusers():
    return import_module("diffusers")


@pytest.fixture(autouse=True)
def _native_again(diffusers):
    """`set_attention_backend` also sets the backend of all models that have none of their own."""
    yield
    names, registry = _dispatch().AttentionBackendName, _dispatch()._AttentionBackendRegistry
    registry.set_active_backend(names.NATIVE)


def _dispatch():
    return import_module("diffusers.models.attention_dispatch")


def flux(diffusers, randn):
    model = diffusers.FluxTransformer2DModel(
        **SIZES,
        patch_size=1,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    given = {"hidden_states": randn(1, 16, 4), "encoder_hidden_states": randn(1, 8, 32)}
    ids = {"img_ids": 0 * randn(16, 3), "txt_ids": 0 * randn(8, 3)}
    return model, given | ids | {"pooled_projections": randn(1, 32), "timestep": randn(1).abs()}


def sd3(diffusers, randn):
    model = diffusers.SD3Transformer2DModel(
        **SIZES,
        sample_size=8,
        patch_size=1,
        num_layers=2,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
    )
    given = {"hidden_states": randn(2, 4, 8, 8), "encoder_hidden_states": randn(2, 10, 32)}
    return model, given | {"pooled_projections": randn(2, 64), "timestep": randn(2).abs()}


def sdxl(diffusers, randn):
    model = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    added = {"text_embeds": randn(1, 32), "time_ids": randn(1, 6)}
    given = {"sample": randn(1, 4, 16, 16), "encoder_hidden_states": randn(1, 8, 64)}
    return model, given | {"timestep": randn(1).abs(), "added_cond_kwargs": added}


def wan(diffusers, randn):
    model = diffusers.WanTransformer3DModel(
        **SIZES,
        patch_size=(1, 2, 2),
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    given = {"hidden_states": randn(1, 4, 2, 8, 8), "encoder_hidden_states": randn(1, 8, 16)}
    return model, given | {"timestep": randn(1).abs()}


def cogvideox(diffusers, randn):
    model = diffusers.CogVideoXTransformer3DModel(
        **SIZES,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=8,
    )
    given = {"hidden_states": randn(1, 3, 4, 8, 8), "encoder_hidden_states": randn(1, 8, 8)}
    return model, given | {"timestep": randn(1).abs()}


# With how many calls of attention one of the model makes.
MODELS = {"flux": (flux, 2), "sd3": (sd3, 2), "sdxl": (sdxl, 8), "wan": (wan, 4)}
MODELS["cogvideox"] = (cogvideox, 2)
OF_DISPATCHER = ("flux", "wan")


@pytest.fixture
def made(diffusers, torch_module):
    """Return a function that makes a model, and one of no arguments that runs it."""

    def make(name):
        torch_module.manual_seed(0)
        device = device_here(torch_module)
        model, given = MODELS[name][0](diffusers, torch_module.randn)
        model = model.to(device).eval().requires_grad_(False)
        given = {k: v if isinstance(v, dict) else v.to(device) for k, v in given.items()}
        if "added_cond_kwargs" in given:
            some = given["added_cond_kwargs"]
            given["added_cond_kwargs"] = {k: v.to(device) for k, v in some.items()}
        return model, lambda of=model: of(**given, return_dict=False)[0]

    return make


@pytest.mark.parametrize("name", MODELS)
def test_attached_models(cd, torch_module, made, dynamo, name):
    model, run = made(name)
    before, calls = run(), MODELS[name][1]
    with cd.attach(model, "int8-fp16") as attached:
        o = run()
        assert attached.calls.schemes == {"int8-fp16": calls}
        assert attached.calls.fallback == {}
        assert 0 < error(o, before) < 0.01
        if name in ("flux", "sd3"):  # one that asks the dispatcher, and one that does not
            assert torch_module.equal(run(dynamo(model)), o)
    if name != "sdxl":
        assert torch_module.equal(run(), before)
        with cd.attach(model, "fp16"):
            assert error(run(), before) < 1e-3


@pytest.mark.parametrize("name", ["flux", "sd3", "wan"])
def test_backends_of_one_scheme(cd, ct, diffusers, torch_module, made, name):
    model, run = made(name)
    calls = MODELS[name][1] if name in OF_DISPATCHER else 0  # others have no ear for it
    with cd.attach(model, "int8-block"):
        attached = run()
    before, backend = run(), cd.register("int8-block")
    assert backend == "cuattn-int8-block"
    ct.calls.reset()
    with diffusers.attention_backend(backend):
        o = run()
    model.set_attention_backend(backend)
    assert torch_module.equal(run(), o)
    assert ct.calls.cuattn == 2 * calls
    assert torch_module.equal(o, attached if calls else before)


def test_layers_of_a_plan(cd, made):
    preset = cuattn.PRESETS
    model, run = made("wan")
    plan = cuattn.SchemePlan({"blocks.0": preset["int8"], ("blocks.0", 1): preset["int8-fast"]})
    with cd.attach(model, plan, leave_out="*.attn2") as attached:
        run()
        attached.step = 1
        run()
    assert attached.calls.schemes == {"int8": 1, "int8-fast": 1}
    assert attached.calls.fallback == {"left out": 4, "not in the plan": 2}
    unet, run = made("sdxl")
    with cd.attach(unet, "int8", leave_out="*.attn2") as attached:
        run()
    assert (attached.calls.cuattn, attached.calls.fallback) == (4, {"left out": 4})


def test_gradients_are_pytorchs(cd, torch_module, made):
    model, run = made("wan")
    model.proj_out.requires_grad_(False)
    weight = model.blocks[0].attn1.to_v.weight.requires_grad_()
    (exact,) = torch_module.autograd.grad(run().sum(), weight)
    for backward, counted in ((None, "fallback"), ("torch", "schemes")):
        with cd.attach(model, "fp16", backward=backward) as attached:
            (found,) = torch_module.autograd.grad(run().sum(), weight)
        assert sum(getattr(attached.calls, counted).values()) == 4
        assert error(found, exact) < 0.01


# ---- what the dispatcher asks of a backend


def ask(tensors, name, **options):
    q, k, v = (x.transpose(1, 2).contiguous() for x in tensors)
    names, more = _dispatch().AttentionBackendName, options.pop("attention_kwargs", {})
    options = {"backend": names(name), "attention_kwargs": more} | options
    return _dispatch().dispatch_attention_fn(q, k, v, **options)


@pytest.mark.parametrize("axes", [2, 4])
def test_masks_of_keys_have_two_axes_or_four(cd, torch_module, tensors, axes):
    qkv = tensors("float16", batch=2)
    mask = torch_module.arange(80, device=qkv[0].device).reshape(2, 40) % 3 > 0
    expected = own(*qkv, attn_mask=mask[:, None, None])
    o = ask(qkv, cd.register("int8"), attn_mask=mask if axes == 2 else mask[:, None, None])
    assert torch_module.equal(o.transpose(1, 2), expected)


def test_options_of_the_dispatcher(cd, ct, torch_module, tensors):
    qkv, name = tensors("float16"), cd.register("int8")
    o, lse = ask(qkv, name, attention_kwargs={"return_lse": True, "window_size": (5, 5)}, scale=0.3)
    expected = own(*qkv, return_lse=True, window_size=(5, 5), scale=0.3)
    assert torch_module.equal(o.transpose(1, 2), expected[0])
    assert torch_module.equal(lse, expected[1])
    ct.calls.reset()
    ask(qkv, name, dropout_p=0.5)
    assert ct.calls.fallback == {"dropout": 1}
    strict = cd.register("int8", name="cuattn-strict", fallback=False)
    with pytest.raises(ArgumentError, match=r"^dropout_p must be 0"):
        ask(qkv, strict, dropout_p=0.5)


@pytest.mark.parametrize("degree", ["ring", "ulysses"])
def test_parts_of_the_keys_are_merged_by_their_lse(cd, torch_module, tensors, degree):
    """As diffusers' ring does it, without processes; heads apart, without a log-sum-exp."""
    backend = import_module("cuattn.diffusers.backend")
    qkv = tensors(heads=4)
    q, k, v = (x.transpose(1, 2).contiguous() for x in qkv)
    ring = SimpleNamespace(ring_degree=2 if degree == "ring" else 1)
    forward = backend.partial(backend._forward, "fp16", 0, (-1, -1))
    config = {"_parallel_config": SimpleNamespace(context_parallel_config=ring)}
    if degree == "ring":
        parts = [
            forward(None, q, x, y, return_lse=True, **config)
            for x, y in zip(k.chunk(2, 1), v.chunk(2, 1), strict=True)
        ]
        (o, lse), (other, other_lse) = ((x, y[..., None]) for x, y in parts)
        o = o - torch_module.sigmoid(other_lse - lse) * (o - other)
        with pytest.raises(ArgumentError, match=r"^attn_mask must be not given"):
            forward(None, q, k, v, q.new_zeros(40, 40), **config)
    else:
        parts = zip(*(x.chunk(2, 2) for x in (q, k, v)), strict=True)
        o = torch_module.cat([forward(None, *some, **config) for some in parts], 2)
    assert error(o.transpose(1, 2), own(*qkv, scheme="fp16")) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("degree", ["ring_degree", "ulysses_degree"])
def test_context_parallelism_of_two_processes(degree, tmp_path):
    """By gloo, in host memory; diffusers only needs to be told that there is a device."""
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, program, degree], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["same"] * 2, run.stderr


PROGRAM = """
import os, sys, tempfile
import torch
import torch.distributed as dist


def main(rank, store):
    import diffusers
    import cuattn.diffusers

    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    x, text, pooled = torch.randn(1, 16, 4), torch.randn(1, 8, 32), torch.randn(1, 32)
    given = {"hidden_states": x, "encoder_hidden_states": text, "pooled_projections": pooled}
    given |= {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(8, 3)}
    given |= {"timestep": torch.ones(1), "return_dict": False}
    with torch.no_grad():
        exact = model(**given)[0]
        attached = cuattn.diffusers.attach(model, "fp16")
        model.enable_parallelism(config=diffusers.ContextParallelConfig(**{sys.argv[1]: 2}))
        o = model(**given)[0]
    assert attached.calls.schemes["fp16"] == (4 if "ring" in sys.argv[1] else 2)
    assert attached.calls.fallback == {}
    assert (o - exact).abs().max() < 1e-3 * exact.abs().max()
    print("same\\n", end="", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(main, (os.path.join(folder, "store"),), nprocs=2)
"""


# ---- names


def test_names_of_backends(cd):
    mine = cuattn.Scheme("Mine")
    assert cd.register(mine) == cd.register(mine) == "cuattn-mine"
    for scheme, options in (
        (cuattn.Scheme("Mine", smooth_k="none"), {}),
        (mine, {"fallback": False}),
    ):
        with pytest.raises(ArgumentError, match=r"^name must be one that no other backend has"):
            cd.register(scheme, **options)
    with pytest.raises(ArgumentError, match=r"^name must be one that no other backend has"):
        cd.register("int8", name="native")
    with pytest.raises(ArgumentError, match=r"^name must be in small letters"):
        cd.register("int8", name="Mine")
    with pytest.raises(ArgumentError, match=r"^scheme must be"):
        cd.register("int7")
    with pytest.raises(KeywordError, match=r"expected 'scheme'"):
        cd.register(quantization="int8")
