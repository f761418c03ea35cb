"""The stand-ins for Transformer Engine on CPU ranks: its signatures, PyTorch's values, and never on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tomllib

from tests import te_signatures

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "reference" / "stand_ins"


def test_they_are_installed_by_make_setup_alone_and_say_what_they_are() -> None:
    assert version("transformer-engine").endswith("+slipway.cpu")
    assert tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]["version"] == version("transformer-engine")
    assert "recipes/reference/stand_ins" in (ROOT / ".dockerignore").read_text().split()
    assert "recipes/reference/stand_ins" in (ROOT / "Makefile").read_text()
    assert not (FOLDER / "__init__.py").exists(), "Slipway's wheel would hold them"


def test_a_machine_with_a_gpu_refuses_them() -> None:
    program = "import torch; torch.cuda.is_available = lambda: True; import transformer_engine"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 1 and "computes on CPU ranks only, and this machine has a GPU" in ended.stderr


@pytest.mark.nemo
def test_signatures_are_those_of_transformer_engine(in_child: Any) -> None:
    """An argument that Megatron-Core passes and the real package does not take fails on a CPU rank too."""

    def differences() -> dict[str, Any]:
        import importlib
        import inspect

        def words(function: Any) -> list[str]:
            stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
            return [
                stars.get(p.kind, "") + p.name + ("" if p.default is inspect.Parameter.empty else "=")
                for p in inspect.signature(function).parameters.values()
                if p.name != "self"
            ]

        wrong = {}
        for name, recorded in json.loads(te_signatures.RECORD.read_text()).items():
            module = next(m for m in te_signatures.PLACES if name.startswith(f"{m}."))
            found: Any = importlib.import_module(f"transformer_engine.pytorch.{module}")
            for part in name.removeprefix(f"{module}.").split("."):
                found = getattr(found, part)
            if words(found) != recorded:
                wrong[name] = {"ours": words(found), "theirs": recorded}
        return wrong

    assert in_child(differences) == {}


@pytest.mark.nemo
def test_values_are_those_of_pytorchs_own_functions(in_child: Any) -> None:
    def differences() -> dict[str, float]:
        import torch
        import transformer_engine.pytorch as te
        from torch.nn import functional as F

        torch.manual_seed(0)
        s, b, h, g, d = 16, 2, 4, 2, 8
        q, k, v = torch.randn(s, b, h, d), torch.randn(s, b, g, d), torch.randn(s, b, g, d)
        wide = [t.permute(1, 2, 0, 3) for t in (q, k, v)]
        theirs = F.scaled_dot_product_attention(wide[0], wide[1], wide[2], is_causal=True, enable_gqa=True)
        attend = te.DotProductAttention(h, d, num_gqa_groups=g)
        out = {"attention": (attend(q, k, v) - theirs.permute(2, 0, 1, 3).flatten(2)).abs().max()}
        # packed: two sequences of one row each equal each sequence alone
        ends = torch.tensor([0, 6, s])
        packed = attend(q[:, 0], k[:, 0], v[:, 0], qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends)
        alone = [attend(q[i:j, :1], k[i:j, :1], v[i:j, :1])[:, 0] for i, j in ((0, 6), (6, s))]
        out["packed"] = (packed - torch.cat(alone)).abs().max()
        x = torch.randn(s, b, 12)
        for kind, norm in (("RMSNorm", torch.nn.RMSNorm), ("LayerNorm", torch.nn.LayerNorm)):
            joined = te.LayerNormLinear(12, 6, normalization=kind, init_method=torch.nn.init.normal_, device="cpu")
            expected = F.linear(norm(12, eps=1e-5)(x), joined.weight, joined.bias)
            out[kind] = (joined(x) - expected).abs().max()
            centered = getattr(te, kind)(12, zero_centered_gamma=True)
            out[f"{kind} around zero"] = (centered(x) - norm(12, eps=1e-5)(x)).abs().max()
        grouped = te.GroupedLinear(2, 12, 6, bias=False, init_method=torch.nn.init.normal_, device="cpu")
        rows = torch.randn(5, 12)
        each = torch.cat([F.linear(rows[:3], grouped.weight0), F.linear(rows[3:], grouped.weight1)])
        out["grouped"] = (grouped(rows, [3, 2]) - each).abs().max()
        ours, theirs_ = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
        fused = te.optimizers.FusedAdam([ours], lr=0.1, weight_decay=0.01)
        adam = torch.optim.AdamW([theirs_], lr=0.1, weight_decay=0.01)
        for step in range(3):
            ours.grad = theirs_.grad = torch.arange(4.0) - step
            fused.step()
            adam.step()
        out["adam"] = (ours - theirs_).abs().max()
        return {name: float(value) for name, value in out.items()}

    assert max(in_child(differences).values()) < 2e-6


def test_without_them_a_toy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from slipway.configs import Refusal
    from slipway.recipes import reference

    reference.require_stand_ins()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refusal, match="CPU ranks need Slipway's stand-ins for Transformer Engine"):
        reference.require_stand_ins()
