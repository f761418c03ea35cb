"""What cannot be converted is one sentence, and nothing is written; what is written is what transformers writes."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway import configs
from slipway.configs import Refusal
from tests.weights.tiny import TINY, make


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in several shards."""
    folder = tmp_path_factory.mktemp("saved") / "hf"
    make("llama3", folder, shard="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def _change(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _rewrite(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Save the folder's tensors again in one file, changed."""

    def rewrite(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors: dict[str, Any] = {}
        for file in folder.glob("*.safetensors"):
            tensors |= load_file(file)
            file.unlink()
        (folder / "model.safetensors.index.json").unlink()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return rewrite


def _cut(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-7])


def _unlink_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


def _narrow(tensors: dict[str, Any]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]


def _bytes(tensors: dict[str, Any]) -> None:
    import torch

    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not a JSON object"),
    "another family": (_change("config.json", architectures=["BloomForCausalLM"]), "holds a BloomForCausalLM, which"),
    "quantized": (_change("config.json", quantization_config={"quant_method": "awq"}), "weights quantized to awq"),
    "bias": (_change("config.json", attention_bias=True), "attention_bias=true, and llama is trained here with false"),
    "rope": (
        _change("config.json", rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "rope_scaling=.*dynamic.* trained here with rope_type llama3",
    ),
    "missing shard": (lambda f: sorted(f.glob("*.safetensors"))[1].unlink(), "lacks model-00002-of-.*its index names"),
    "cut short": (_cut, r"model-00002-of-.* is cut short: [\d,]+ of [\d,]+ bytes"),
    "not safetensors": (lambda f: sorted(f.glob("*.safetensors"))[0].write_bytes(b"x" * 99), "not in the safetensors"),
    "no weights": (_unlink_weights, "has no .safetensors files"),
    "missing tensor": (
        _rewrite(lambda t: [t.pop(name) for name in ("model.norm.weight", "lm_head.weight")]),
        "lacks lm_head.weight and 1 more tensors",
    ),
    "extra tensor": (
        _rewrite(lambda t: t.update({"model.norm.bias": t["model.norm.weight"].clone()})),
        "has model.norm.bias, which LlamaForCausalLM does not have",
    ),
    "wrong shape": (_rewrite(_narrow), r"model.norm.weight of shape \(63,\), and its config.json says \(64,\)"),
    "integers": (_rewrite(_bytes), "has model.norm.weight in torch.int8"),
    "another size": (_change("config.json", num_hidden_layers=3), "lacks model.layers.2.* and 8 more tensors"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_cannot_be_imported_is_one_sentence(case: str, saved: Path, tmp_path: Path) -> None:
    from slipway.launch.weights.from_hugging_face import import_weights

    break_it, sentence = BROKEN[case]
    shutil.copytree(saved, tmp_path / "hf")
    break_it(tmp_path / "hf")
    with pytest.raises(Refusal, match=sentence):
        import_weights(tmp_path / "hf", tmp_path / "base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"], "nothing was written"


def test_shards_are_those_of_transformers(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With transformers' limit on a file's size, and an index that names every tensor."""
    from slipway.launch.weights import safetensors, to_hugging_face
    from slipway.launch.weights.from_hugging_face import import_weights

    import_weights(saved, tmp_path / "base")
    monkeypatch.setattr(safetensors.Writer.__init__, "__defaults__", (100_000,))
    to_hugging_face.export_weights(tmp_path / "base", tmp_path / "back")
    names = sorted(path.name for path in saved.iterdir())
    assert filecmp.cmpfiles(saved, tmp_path / "back", names, shallow=False)[0] == names


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slipway.launch.weights.from_hugging_face import import_weights

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(Refusal, match="base needs .* GiB and its disk has 0.0 GiB free"):
        import_weights(saved, tmp_path / "base")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slipway.launch.weights import checkpoint
    from slipway.launch.weights.from_hugging_face import import_weights

    def full(*args: Any) -> None:
        (args[0] / "part").parent.mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(Refusal, match="base could not be written: No space left on device"):
        import_weights(saved, tmp_path / "base")
    assert not list(tmp_path.iterdir())


def test_another_type_is_rounded_once_and_named(saved: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from slipway.launch.weights.from_hugging_face import import_weights
    from slipway.launch.weights.to_hugging_face import export_weights

    import_weights(saved, tmp_path / "base")
    export_weights(tmp_path / "base", tmp_path / "half", "bfloat16")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    halves = load_file(tmp_path / "half/model.safetensors")
    whole = AutoModelForCausalLM.from_pretrained(saved).state_dict()
    assert halves.keys() == whole.keys()
    assert all(torch.equal(halves[name], tensor.to(torch.bfloat16)) for name, tensor in whole.items())
    with pytest.raises(Refusal, match="--dtype int8 is not legal"):
        export_weights(tmp_path / "base", tmp_path / "other", "int8")
    with pytest.raises(Refusal, match="half is already there"):
        export_weights(tmp_path / "base", tmp_path / "half")


def test_a_base_of_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    """Before a job is submitted, by the facts that import wrote."""
    from slipway.configs import model
    from slipway.launch.weights.from_hugging_face import import_weights
    from slipway.recipes.runtime.base import checked_base

    import_weights(saved, tmp_path / "base")
    with pytest.raises(Refusal, match="has weights of hf with num_layers=2, and this model has num_layers=32"):
        checked_base(tmp_path / "base", model("llama3_8b"))


def test_what_cannot_be_exported_is_one_sentence(saved: Path, tmp_path: Path) -> None:
    from slipway.launch.weights.from_hugging_face import import_weights
    from slipway.launch.weights.to_hugging_face import export_weights

    with pytest.raises(Refusal, match="holds no run and no imported weights"):
        export_weights(tmp_path, tmp_path / "x")
    import_weights(saved, tmp_path / "base")
    shard = next((tmp_path / "base/weights").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(Refusal, match="cannot be read: it has __0_0.distcp cut short"):
        export_weights(tmp_path / "base", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def _slipway(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "slipway"
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=120, check=False)


def test_the_commands_print_what_scripts_read(saved: Path, tmp_path: Path) -> None:
    """Both in a process of its own, which imports neither NeMo nor Megatron-Core."""
    keys = {"family", "tensors", "bytes", "seconds", "peak_rss_gib", "checksum"}
    base, back = str(tmp_path / "base"), str(tmp_path / "back")
    for words in (("import", str(saved), "--out", base), ("export", base, "--out", back)):
        done = _slipway("weights", *words, "--json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer.keys() == keys
        assert (answer["family"], answer["tensors"]) == ("llama", 21)
    refused = _slipway("weights", "import", str(saved), "--out", base)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.strip().splitlines()[-1] == f"slipway: {base} is already there. Give another --out."


def test_a_name_on_the_hub_is_its_snapshot_in_the_local_cache(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout of huggingface_hub's cache; a model that is not there is not downloaded."""
    from huggingface_hub import constants

    from slipway.launch.weights.folder import downloaded

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--some--llama"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("abc")
    shutil.copytree(saved, cached / "snapshots/abc")
    assert downloaded(Path("some/llama")) == cached / "snapshots/abc"
    with pytest.raises(Refusal, match="no folder some/other, and the local cache of the Hub has no model of that name"):
        downloaded(Path("some/other"))


def test_a_checksum_knows_a_changed_bit_and_not_an_order() -> None:
    import torch

    from slipway.launch.weights.folder import Checksum

    def of(*tensors: tuple[str, torch.Tensor]) -> str:
        checksum = Checksum()
        for name, tensor in tensors:
            checksum.add(name, None, tensor)
        return checksum.text

    a, b = ("a", torch.arange(6.0).view(2, 3)), ("b", torch.ones(4, dtype=torch.bfloat16))
    assert of(a, b) == of(b, a)
    changed = a[1].clone()
    changed[1, 2] += 1
    others = [of(("a", changed), b), of(("a", a[1].T), b), of(("b", a[1]), ("a", b[1])), of(a)]
    assert of(a, b) not in others


def test_neither_command_imports_nemo() -> None:
    program = (
        "import sys, slipway.launch.weights.to_hugging_face, slipway.launch.weights.from_hugging_face\n"
        "from slipway.launch.weights.family import families; families()\n"
        "sys.exit(len({'nemo', 'megatron', 'lightning', 'nemo_run'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_class_is_converted_or_refused_and_documented() -> None:
    from slipway.launch.weights.family import families
    from slipway.launch.weights.refused import REFUSED

    page = (Path(__file__).parents[2] / "docs/how-to/start-from-hugging-face.md").read_text()
    converted = {family.architecture for family in families()}
    assert not converted & REFUSED.keys()
    assert [name for name in converted | REFUSED.keys() if f"`{name}`" not in page] == []
    tested = {TINY[name].family for name in TINY}
    assert {family.name for family in families()} == tested, "each has a test against transformers"


def test_a_class_without_a_recipe_is_refused_with_the_reason(saved: Path, tmp_path: Path) -> None:
    from slipway.launch.weights.from_hugging_face import import_weights

    shutil.copytree(saved, tmp_path / "hf")
    _change("config.json", architectures=["Mamba2ForCausalLM"])(tmp_path / "hf")
    with pytest.raises(Refusal, match="holds a Mamba2ForCausalLM, which is not imported: no recipe trains it"):
        import_weights(tmp_path / "hf", tmp_path / "base")


WITHOUT_CLASS = ("gpt3", "baichuan2", "chatglm")  # transformers has none of these, or one that computes something else


@pytest.mark.parametrize("name", configs.recipe_names())
def test_the_model_of_each_recipe_survives_its_config(name: str) -> None:
    """Facts to config.json and back: what is trained is what transformers computes."""
    from slipway.launch.weights.config import config_of, model_of
    from slipway.launch.weights.family import differences, family_of, recipes_of
    from slipway.recipes.runtime.base import SHAPES

    model = configs.headline(name)[0]
    if model.family in WITHOUT_CLASS:
        with pytest.raises(Refusal, match=f"is of the family {model.family}, which cannot be written"):
            family_of(model)
        return
    family = family_of(model)
    again = model_of(family, config_of(family, model))
    assert differences(model, again) == []
    assert name in recipes_of(again)
    assert [fact for fact in SHAPES if getattr(model, fact) != getattr(again, fact)] == [], "its base is accepted"


def test_a_fact_that_transformers_lacks_is_refused() -> None:
    from slipway.launch.weights.family import family_of

    with pytest.raises(Refusal, match="transformers' LlamaForCausalLM has no qk_layernorm=True, which llama3_8b was"):
        family_of(replace(configs.model("llama3_8b"), qk_layernorm=True))


def test_rows_that_pad_the_vocabulary_are_not_exported(saved: Path, tmp_path: Path) -> None:
    """A run's checkpoint has them; here those of a base, whose model is said to have fewer tokens."""
    import torch
    from safetensors.torch import load_file

    from slipway.launch.weights.from_hugging_face import import_weights
    from slipway.launch.weights.to_hugging_face import export_weights

    import_weights(saved, tmp_path / "base")
    record = tmp_path / "base/slipway/base.json"
    held = json.loads(record.read_text())
    record.write_text(json.dumps(held | {"model": held["model"] | {"vocab_size": 490}}))
    export_weights(tmp_path / "base", tmp_path / "back")
    exported = load_file(tmp_path / "back/model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        file = next(f for f in saved.glob("*.safetensors") if name in load_file(f))
        assert torch.equal(exported[name], load_file(file)[name][:490])
    record.write_text(json.dumps(held | {"model": held["model"] | {"vocab_size": 510}}))
    with pytest.raises(Refusal, match=r"word_embeddings.weight of shape \(500, 64\), and its record says \(510, 64\)"):
        export_weights(tmp_path / "base", tmp_path / "more")
