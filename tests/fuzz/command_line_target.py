"""Command lines of any words that the commands know, and of some that they do not.

A command ends with 0, or with 2 and one line that says what is wrong.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cuattn import cli

NUMBERS = st.sampled_from(["0", "1", "2", "3", "16", "40", "-1", "nan", "1e9", "0.5", "x", ""])
NAMES = st.sampled_from(
    ["int8", "fp16", "int4", "int8,fp16", "none", "all", "INT8", "é", "$x$", ""]
)
FILES = st.sampled_from(
    [
        "in.npz",
        "nan.npz",
        "mask.npz",
        "text.npz",
        "none.npz",
        ".",
        "out.json",
        "-",
        "no/such/o.html",
    ]
)
OPTIONS = {
    "report": {
        "--schemes": NAMES,
        "--seqlen-q": st.sampled_from(["0", "1", "17", "40", "-1", "x"]),
        "--seqlen-kv": st.sampled_from(["1", "33", "-2", "x"]),
        "--heads": st.sampled_from(["1", "2", "0", "x"]),
        "--head-dim": st.sampled_from(["8", "32", "7", "300", "x"]),
        "--distribution": st.sampled_from(["normal", "outliers", "sinks", "no", ""]),
        "--json": FILES,
        "--html": FILES,
    },
    "choose": {"--max-error": NUMBERS, "--min-cosine": NUMBERS, "--json": FILES},
    "compile": {
        "--arch": st.sampled_from(["foo", "sm_1", "80", ""]),
        "--head-dims": st.sampled_from(["7", "300", "x", ""]),
        "--schemes": st.sampled_from(["none", ""]),
    },
    "info": {"--json": FILES},
    "bench": {"--from": FILES, "--compare": FILES, "--html": FILES},
}


@st.composite
def lines(draw):
    command = draw(st.sampled_from(sorted(OPTIONS)))
    argv = [command]
    for option, value in OPTIONS[command].items():
        if draw(st.booleans()):
            argv += [option, draw(value)]
    if command in ("report", "choose") and draw(st.booleans()):
        argv.append(draw(FILES))
    if draw(st.integers(0, 9)) == 0:
        argv.insert(draw(st.integers(0, len(argv))), draw(st.text(max_size=4)))
    # What would take long, or needs a GPU, is not what is looked for.
    if command == "bench" and "--from" not in argv:
        argv += ["--from", "out.json"]
    if command == "compile" and not any(
        word in argv for word in ("foo", "sm_1", "7", "300", "none")
    ):
        argv += ["--arch", "foo"]
    if command == "report" and "--seqlen-q" not in argv:
        argv += ["--seqlen-q", "17", "--heads", "1"]
    return argv


def prepare():
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((1, 1, 9, 16)).astype(np.float32) for name in "qkv"}
    np.savez("in.npz", **arrays)
    np.savez("mask.npz", **arrays, attn_mask=np.ones((9, 9), bool))
    arrays["k"][0, 0, 3, 5] = np.nan
    np.savez("nan.npz", **arrays)
    Path("text.npz").write_text("not an archive")


def run(place, count, configured, config, seed):
    del place, config, seed
    home = Path.cwd()

    @given(argv=lines())
    def command(argv):
        out, err = io.StringIO(), io.StringIO()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                prepare()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    try:
                        code = cli.main(argv)
                    except SystemExit as leaving:  # argparse's way of --help
                        code = leaving.code
            finally:
                os.chdir(home)
        assert code in (0, 2), (argv, code, err.getvalue())
        if code:
            lines_of_error = [
                x for x in err.getvalue().splitlines() if x.startswith("cuattn: error")
            ]
            assert len(lines_of_error) == 1, (argv, err.getvalue())
        count("0" if code in (0, None) else "2")

    configured(command)()
