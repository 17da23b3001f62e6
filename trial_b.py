exec(open("trial_a.py").read())
t0 = time.time()
check()
print("check took", time.time() - t0, flush=True)
T = dict(float_sums=True)
I = dict(tied_sums=True)
base = {"": {}, "f": T, "t": I, "ft": {**T, **I}}
for d in (128, 64):
    variants = {}
    for nm in ("int8", "int8-block"):
        for s, o in base.items():
            variants[f"{nm}#{s}"] = o
            if d == 64:
                variants[f"{nm}#{s}3g"] = {
                    **o,
                    "groups": 3,
                    "group_registers": 160,
                    "order": Order.in_turn,
                }
            if d == 64 and s in ("", "t"):
                variants[f"{nm}#{s}3ga"] = {
                    **o,
                    "groups": 3,
                    "group_registers": 160,
                    "order": Order.ahead,
                }
        if d == 128:
            variants[f"{nm}#turn"] = {"order": Order.in_turn}
            variants[f"{nm}#fturn"] = {**T, "order": Order.in_turn}
            variants[f"{nm}#steps"] = {"tied_steps": True}
    for nm in ("int8-fast", "int8-token", "fp16", "mmaint8", "mmaint8-block", "mmaint8-token"):
        variants[nm] = {}
    for n in (4096, 16384):
        rng = cp.random.default_rng(1)
        q, k, v = [
            rng.standard_normal((4 if n == 4096 else 1, 32, n, d), dtype=cp.float32).astype(
                cp.float16
            )
            for _ in range(3)
        ]
        fns = {}
        ops = {}
        for nm, o in variants.items():
            p = nm.split("#")[0]
            pre = p.replace("mma", "")
            sc = replace(PRESETS[pre], name=nm)
            if o:
                OVER[nm] = (lambda o: lambda s: replace(s, **o))(o)
            if p.startswith("mma") and n == 16384:
                continue
            if pre not in ops:
                ops[pre] = operands(PRESETS[pre], q, k, v)
            fns[nm] = (lambda a, sc: lambda: cuattn.attention(*a, scheme=sc))(ops[pre], sc)
        try:
            r = time_all(fns, 9)
        except Exception as e:
            print("FAIL", repr(e)[:2000])
            continue
        fl = 4 * q.shape[0] * 32 * n * n * d / 1e9
        print(d, n, {k: round(fl / t) for k, t in r.items()}, flush=True)
        # calls
        calls = {
            f"call {p}": (lambda p: lambda: cuattn.attention(q, k, v, scheme=p))(p)
            for p in ("int8", "int8-token", "int8-block", "fp16", "int8-fast")
        }
        Gq = lambda names: None
        r = time_all(calls, 9)
        print("   calls", {k: round(fl / t) for k, t in r.items()}, flush=True)
        qk = {
            "quant kv sorted": lambda: cuattn.quantize_kv(k, v, scheme="int8"),
            "quant kv token": lambda: cuattn.quantize_kv(k, v, scheme="int8-token"),
            "quant kv block": lambda: cuattn.quantize_kv(k, v, scheme="int8-block"),
            "quant q": lambda: cuattn.quantize(q, operand="q"),
        }
        r = time_all(qk, 9)
        print(
            "   us",
            {k: round(t * 1e3) for k, t in r.items()},
            "bytes GB",
            q.nbytes / 1e9,
            flush=True,
        )
        del q, k, v, ops, fns
print("total", time.time() - t0)
