"""Plans: what each layer and step uses, the same after a file, and files that are none."""

import json

import pytest

from cuattn.choice import measure
from cuattn.choice.choose import choose_scheme
from cuattn.choice.scheme_plan import SchemePlan, plan_schemes
from cuattn.errors import ArgumentError
from cuattn.plan import kernels as plan
from cuattn.presets import PRESETS
from cuattn.reference.distributions import make
from cuattn.scheme import Scheme

SIZES = {
    "batch": 1,
    "num_q_heads": 2,
    "num_kv_heads": 1,
    "seqlen_q": 24,
    "seqlen_kv": 24,
    "head_dim": 32,
}
MINE = Scheme("mine", v_scope="channel", p_range="twin", p_split=9, smooth_v="mean", rotate="qkv")
PLAN = SchemePlan(
    {"a": PRESETS["int8-block"], ("a", 3): PRESETS["fp16"], ("b", 0): MINE, "ü": PRESETS["sage2-4"]}
)


@pytest.fixture
def without_gpu(monkeypatch):
    for module in (measure, plan):
        monkeypatch.setattr(module, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


def test_steps_without_a_scheme_have_their_layers():
    assert PLAN["a"] == PRESETS["int8-block"]
    assert PLAN["a", 3] == PRESETS["fp16"]
    assert PLAN["a", 4] == PRESETS["int8-block"]
    assert PLAN["b", 0] == MINE


@pytest.mark.parametrize("key", ["c", ("c", 0), "b", ("b", 1)])
def test_unknown_layer_is_named(key):
    with pytest.raises(ArgumentError, match=r"layer must be one of \['a', "):
        PLAN[key]


@pytest.mark.parametrize("key", [3, ("a", -1), ("a", True), ("a", "3"), ("a", 1, 2), None])
def test_keys_are_names_and_steps(key):
    with pytest.raises(ArgumentError, match="layer must be a name"):
        PLAN[key]
    with pytest.raises(ArgumentError, match="layer must be a name"):
        SchemePlan({key: PRESETS["int8"]})


def test_schemes_are_schemes():
    with pytest.raises(ArgumentError, match=r"schemes\['a'\] must be a Scheme"):
        SchemePlan({"a": "int8"})


def test_plan_is_its_own():
    given = {"a": PRESETS["int8"]}
    own = SchemePlan(given)
    given["a"] = PRESETS["fp16"]
    assert own["a"] == PRESETS["int8"]


def test_file_holds_the_plan(tmp_path):
    file = tmp_path / "plan.json"
    PLAN.save(file)
    assert SchemePlan.load(str(file)) == PLAN
    assert list(SchemePlan.load(file).schemes) == list(PLAN.schemes)
    assert list(tmp_path.iterdir()) == [file]
    SchemePlan({}).save(file)
    assert SchemePlan.load(file) == SchemePlan({})


@pytest.mark.parametrize("scheme", PRESETS.values(), ids=PRESETS)
def test_every_preset_survives(tmp_path, scheme):
    SchemePlan({"layer": scheme}).save(tmp_path / "x")
    assert SchemePlan.load(tmp_path / "x")["layer"] == scheme


def test_file_does_not_depend_on_presets_and_defaults(tmp_path):
    PLAN.save(tmp_path / "x")
    entry = json.loads((tmp_path / "x").read_text())["entries"][0]
    assert (entry["layer"], entry["step"]) == ("a", None)
    assert Scheme(**entry["scheme"]) == PRESETS["int8-block"]
    assert entry["scheme"].keys() == vars(MINE).keys()


def damaged(change):
    """Return the text of a plan of one layer in which something is different."""
    entry = {"layer": "a", "step": None, "scheme": dict(vars(PRESETS["int8"]))}
    document = {"format": "cuattn scheme plan 1", "entries": [entry]}
    change(document, entry)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.json must be a JSON file"),
        (b"\xff\xfe\x00", "x.json must be a JSON file"),
        ("[]", "x.json must be a JSON file, of type dict"),
        (
            '{"model": "other"}',
            r"x\.json must be a JSON file, an object with the keys \['entries', 'format'\]",
        ),
        (damaged(lambda d, e: d.update(format="cuattn scheme plan 2")), "x.json.format must be"),
        (damaged(lambda d, e: d.update(entries={})), "x.json.entries must be of type list"),
        (damaged(lambda d, e: e.pop("step")), r"x\.json\.entries\[0\] must be an object with"),
        (damaged(lambda d, e: e.update(step=1.5)), r"x\.json\.entries\[0\]\.step must be of"),
        (damaged(lambda d, e: e.update(step=-1)), "x.json: layer must be a name"),
        (damaged(lambda d, e: d["entries"].append(e)), r"entries\[1\] must be named only once"),
        (damaged(lambda d, e: e["scheme"].update(qk="int5")), r"scheme\.qk must be one of"),
        (damaged(lambda d, e: e["scheme"].update(p_terms=True)), r"scheme\.p_terms must be one of"),
        (damaged(lambda d, e: e["scheme"].update(p_terms=[])), r"scheme\.p_terms must be one of"),
        (damaged(lambda d, e: e["scheme"].update(rotate=True)), r"scheme\.rotate must be one of"),
        (damaged(lambda d, e: e["scheme"].update(new=1)), r"scheme must be an object with"),
        (
            damaged(lambda d, e: e["scheme"].update(p_range="row")),
            r"x\.json\.entries\[0\]\.scheme: scheme\.p_range must be one of",
        ),
    ],
)
def test_files_that_are_no_plan_say_why(tmp_path, text, message):
    file = tmp_path / "x.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArgumentError, match=message):
        SchemePlan.load(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ArgumentError, match="path must be an existing file"):
        SchemePlan.load(tmp_path / "gone.json")


def test_each_layer_has_its_own_choice(without_gpu):
    names = ["int8-fast", "int8", "fp16"]
    layers = {"easy": make("normal", **SIZES), ("hard", 2): make("channel-outliers", **SIZES)}
    calls = []
    options = {"min_cosine": 0.9999, "is_causal": True, "max_relative_l1": 0.02}
    found = plan_schemes(
        layers, schemes=iter(names), progress=lambda *call: calls.append(call), **options
    )
    for key, qkv in layers.items():
        choice = choose_scheme(*qkv, schemes=names, **options)
        assert found[key] == choice.scheme
        assert found.choices[key] == choice
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}
    assert str(found).splitlines() == [
        f"easy          {found['easy'].name}",
        f"hard, step 2  {found['hard', 2].name}",
    ]


def test_layer_without_a_scheme_in_the_bounds_is_named(without_gpu):
    layers = {("hard", 2): make("normal", **SIZES)}
    with pytest.raises(ArgumentError, match="hard, step 2: min_cosine must be at most"):
        plan_schemes(layers, schemes=["int8"], min_cosine=1.0)


def test_no_layers_are_no_plan_but_no_error():
    assert plan_schemes({}) == SchemePlan({})
