"""Upstream checkpoints become model folders that render; what does not fit is one error and leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blip3o_rl.checkpoint import staging
from blip3o_rl.checkpoint.convert import convert
from blip3o_rl.checkpoint.upstream_keys import manifest
from blip3o_rl.errors import UserError
from blip3o_rl.io import sha256
from blip3o_rl.mini import parts
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.policy import Blip3oNextConfig

PROMPT = "a photo of a red circle"


def converted(checkpoint: Any, target: Path, **settings: Any) -> Path:
    convert(checkpoint.folder, target, **settings)
    return target


@pytest.mark.parametrize("shards", [1, 3])
def test_a_converted_checkpoint_holds_the_weights_and_renders(upstream: Callable, tmp_path: Path, shards: int) -> None:
    checkpoint = upstream(shards=shards, dtype=torch.float32, editing=True)
    folder = converted(checkpoint, tmp_path / "model")
    assert model_folder.ModelFolder(folder, *model_folder.PARTS)
    given = checkpoint.tensors()
    pipe = Blip3oPipeline.from_pretrained(folder)
    modules = {
        "": pipe.policy,
        "model.diffusion_connector.": pipe.renderer.connector.layers,
        "model.sana.": pipe.renderer.transformer,
        "model.sana_vae.": pipe.renderer.vae,
        "model.und_image_vae_connector.": pipe.renderer.reference_connector.layers,
        "model.vision_tower.vision_tower.": model_folder.ModelFolder(folder).load_image_tokenizer(),
    }
    for prefix, loaded in modules.items():
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, given[prefix + name]), prefix + name
    assert pipe.policy.lm_head.weight is pipe.policy.model.embed_tokens.weight
    assert pipe([PROMPT], [1], GenerationConfig(scale=2, steps=2)).images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_are_kept(upstream: Callable, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = converted(upstream(dtype=dtype), tmp_path / "model")
    for file in folder.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(file).values()} == {dtype}
    assert model_folder.ModelFolder(folder).load_policy(dtype).config.dtype == dtype
    assert json.loads((folder / "policy" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_an_absent_output_matrix_is_the_embedding(upstream: Callable, tmp_path: Path) -> None:
    plan = convert(upstream(lm_head="absent").folder, tmp_path / "model")
    assert plan.lm_head == "absent" and not plan.warnings
    assert model_folder.ModelFolder(tmp_path / "model").load_policy().config.tie_word_embeddings


@pytest.mark.parametrize("says_tied", [True, False])
def test_a_different_output_matrix_is_kept_with_a_warning(upstream: Callable, tmp_path: Path, says_tied: bool) -> None:
    checkpoint = upstream(lm_head="separate", dtype=torch.float32)
    checkpoint.config(tie_word_embeddings=says_tied)
    checkpoint.rewrite(lambda tensors: tensors.update({"lm_head.weight": one_row_changed(tensors)}))
    plan = convert(checkpoint.folder, tmp_path / "model")
    assert [text for text in plan.warnings if "lm_head.weight differs from the embedding in 1 of 896 rows" in text]
    policy = model_folder.ModelFolder(tmp_path / "model").load_policy()
    assert torch.equal(policy.lm_head.weight, checkpoint.tensors()["lm_head.weight"])
    assert not torch.equal(policy.lm_head.weight, policy.model.embed_tokens.weight)


def one_row_changed(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    head = tensors["model.embed_tokens.weight"].clone()
    head[700] += 1
    return head


def test_without_a_tower_there_is_no_image_tokenizer(upstream: Callable, tmp_path: Path) -> None:
    plan = convert(upstream(tower=False).folder, tmp_path / "model")
    assert [text for text in plan.warnings if "no vision tower" in text]
    assert not (tmp_path / "model" / "image_tokenizer").exists()
    assert Blip3oPipeline.from_pretrained(tmp_path / "model")(
        [PROMPT], [1], GenerationConfig(scale=2, steps=1)
    ).images.any()


def ta_tok_file(upstream: Callable, file: Path, **flags: Any) -> dict[str, torch.Tensor]:
    prefix = "model.vision_tower.vision_tower."
    tensors = upstream(dtype=torch.float32).tensors()
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    regularizer = {"name": "simvq", "args": {"codebook_size": 512, "l2_normalized": True, "stochastic": True} | flags}
    bottleneck = {"name": "bottleneck", "args": {"bottleneck_dim": 16, "regularizer": regularizer}}
    args = {"bottleneck": bottleneck, "input_size": 108, "teacher": "x"}
    torch.save({"model": {"args": args, "sd": weights | {"teacher.x": torch.ones(1)}}}, file)
    return weights


def test_ta_tok_pth_gives_flags_and_missing_weights(upstream: Callable, tmp_path: Path) -> None:
    weights = ta_tok_file(upstream, tmp_path / "ta_tok.pth")
    converted(upstream(tower=False), tmp_path / "model", ta_tok=tmp_path / "ta_tok.pth")
    tokenizer = model_folder.ModelFolder(tmp_path / "model").load_image_tokenizer()
    assert tokenizer.config.l2_normalized and tokenizer.grid == 27
    assert all(torch.equal(value, weights[name]) for name, value in tokenizer.state_dict().items())
    recorded = json.loads((tmp_path / "model" / "model_index.json").read_text())["converted"]["ta_tok"]
    flags = {"l2_normalized": True, "stochastic": True, "input_size": 108}
    assert recorded == flags | {"bottleneck_dim": 16, "codebook_size": 512}


def test_the_towers_own_weights_win_over_ta_tok_pth(upstream: Callable, tmp_path: Path) -> None:
    ta_tok_file(upstream, tmp_path / "ta_tok.pth")
    converted(upstream(dtype=torch.bfloat16), tmp_path / "model", ta_tok=tmp_path / "ta_tok.pth")
    tensors = load_file(next((tmp_path / "model" / "image_tokenizer").glob("*.safetensors")))
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert model_folder.ModelFolder(tmp_path / "model").load_image_tokenizer().config.l2_normalized


def change_config(checkpoint: Any, **changes: Any) -> None:
    """Changes ta_tok_config.json; None takes a field out."""
    file = checkpoint.folder / "ta_tok_config.json"
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"l2_normalized": None}, r"ta_tok_config\.json: no l2_normalized, which changes the ids"),
        ({"l2_normalised": True}, r"TA-Tok has no l2_normalised; did you mean 'l2_normalized'"),
        ({"num_attention_heads": None}, "no num_attention_heads, which changes the ids"),
        ({"l2_normalized": "false"}, "l2_normalized 'false' is not true or false"),
    ],
)
def test_a_ta_tok_config_that_would_change_the_ids_is_refused(
    upstream: Callable, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    checkpoint = upstream()
    folder = converted(checkpoint, tmp_path / "model")
    change_config(checkpoint, **changes)
    with pytest.raises(UserError, match=match):
        convert(checkpoint.folder, tmp_path / "again")
    shutil.copy(checkpoint.folder / "ta_tok_config.json", folder / "image_tokenizer" / "config.json")
    with pytest.raises(UserError, match=match.replace("ta_tok_", "")):
        model_folder.ModelFolder(folder).load_image_tokenizer()


def test_flags_that_nothing_says_are_not_guessed(upstream: Callable, tmp_path: Path) -> None:
    checkpoint = upstream()
    change_config(checkpoint, l2_normalized=None)
    weights = ta_tok_file(upstream, tmp_path / "ta_tok.pth")
    converted(checkpoint, tmp_path / "with_flags", ta_tok=tmp_path / "ta_tok.pth")
    assert model_folder.ModelFolder(tmp_path / "with_flags").load_image_tokenizer().config.l2_normalized and weights
    fields = json.loads((checkpoint.folder / "ta_tok_config.json").read_text())
    (checkpoint.folder / "ta_tok_config.json").write_text(json.dumps(fields | {"l2_normalized": None}))
    plan = convert(checkpoint.folder, tmp_path / "model")
    assert [text for text in plan.warnings if "l2_normalized is not in the checkpoint" in text]
    assert model_folder.ModelFolder(tmp_path / "model", *model_folder.GENERATING)
    with pytest.raises(UserError, match="l2_normalized is not known, .* convert the checkpoint again with --ta-tok"):
        model_folder.ModelFolder(tmp_path / "model", "image_tokenizer")
    with pytest.raises(UserError, match="l2_normalized is not known"):
        TATok.from_pretrained(tmp_path / "model" / "image_tokenizer")


@pytest.mark.parametrize("model_type", ["qwen3", "llava_qwen_grpo", "blip3o_qwen_grpo", "no_such_thing", None])
def test_model_type_decides_nothing(upstream: Callable, tmp_path: Path, model_type: str | None) -> None:
    checkpoint = upstream()
    checkpoint.config(model_type=model_type, architectures=None)
    assert model_folder.ModelFolder(converted(checkpoint, tmp_path / "model"), *model_folder.GENERATING)


def test_token_ids_come_from_the_tokenizer_where_the_config_has_none(upstream: Callable, tmp_path: Path) -> None:
    checkpoint = upstream()
    expected = model_folder.ModelFolder(converted(checkpoint, tmp_path / "a")).layout
    checkpoint.config(image_start_tag_id=None, image_start_token_id=None, num_image_tokens=None, num_scale_tokens=None)
    assert model_folder.ModelFolder(converted(checkpoint, tmp_path / "b")).layout == expected


def test_files_of_transformers_4_are_read(upstream: Callable, tmp_path: Path) -> None:
    checkpoint = upstream()
    whole = model_folder.ModelFolder(converted(checkpoint, tmp_path / "a")).layout
    file = checkpoint.folder / "tokenizer_config.json"
    template = (checkpoint.folder / "chat_template.jinja").read_text()
    (checkpoint.folder / "chat_template.jinja").unlink()
    fields = {"tokenizer_class": "Qwen2Tokenizer", "chat_template": template, "extra_special_tokens": {}}
    fields |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None, "padding_side": "right"}
    file.write_text(json.dumps(fields))
    tokenizer = model_folder.ModelFolder(converted(checkpoint, tmp_path / "b")).load_tokenizer()
    assert model_folder.ModelFolder(tmp_path / "b").layout == whole
    assert tokenizer.padding_side == "left" and tokenizer.chat_template == template


def test_a_tokenizer_without_a_template_gets_the_trained_one(upstream: Callable, tmp_path: Path) -> None:
    checkpoint = upstream()
    (checkpoint.folder / "chat_template.jinja").unlink()
    tokenizer = model_folder.ModelFolder(converted(checkpoint, tmp_path / "model")).load_tokenizer()
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_tokens_behind_the_embedding_are_left_out(upstream: Callable, tmp_path: Path) -> None:
    checkpoint = upstream()
    file = checkpoint.folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 896, "content": "<image>", "special": True})
    file.write_text(json.dumps(content))
    plan = convert(checkpoint.folder, tmp_path / "model")
    assert [text for text in plan.warnings if text.startswith("tokenizer: <image> behind the end")]
    tokenizer = model_folder.ModelFolder(tmp_path / "model").load_tokenizer()
    assert max(tokenizer("draw <image> here")["input_ids"]) < 896
    assert json.loads((tmp_path / "model" / "upstream" / "tokenizer.json").read_text()) == content


def test_the_samplers_filter_of_the_source_is_not_taken_over(upstream: Callable, tmp_path: Path) -> None:
    policy = model_folder.ModelFolder(converted(upstream(), tmp_path / "model")).load_policy()
    assert policy.generation_config.top_k is None and policy.generation_config.top_p is None
    assert policy.generation_config.eos_token_id == policy.config.eos_token_id


def test_source_and_hashes_are_recorded_and_no_path(upstream: Callable, tmp_path: Path) -> None:
    checkpoint = upstream(shards=2)
    folder = converted(checkpoint, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    record = index["converted"]
    assert record["source"] == checkpoint.folder.name and record["revision"] is None
    assert record["source_sha256"] == {file.name: sha256(file) for file in checkpoint.files}
    for name, digest in record["sha256"].items():
        assert sha256(folder / name) == digest
    assert {str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")} == set(record["sha256"])
    assert not [file for file in folder.rglob("*.json") if str(tmp_path) in file.read_text()]


def test_a_dry_run_reports_the_plan_and_writes_nothing(upstream: Callable, tmp_path: Path) -> None:
    checkpoint = upstream(editing=True)
    before = sorted(tmp_path.rglob("*"))
    lines: list[str] = []
    convert(checkpoint.folder, tmp_path / "new" / "model", dry_run=True, tell=lines.append)
    assert sorted(tmp_path.rglob("*")) == before
    text = "\n".join(lines)
    for words in ("290 tensors", "renderer/reference_connector: 5 tensors", "512 image tokens", "lm_head.weight: copy"):
        assert words in text


def drop(key: str) -> Callable[[Any], None]:
    return lambda checkpoint: checkpoint.rewrite(lambda tensors: tensors.pop(key))


def set_tensor(key: str, value: torch.Tensor) -> Callable[[Any], None]:
    return lambda checkpoint: checkpoint.rewrite(lambda tensors: tensors.update({key: value}))


def text_only(checkpoint: Any) -> None:
    def keep_language_model(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            if key.startswith(("model.sana", "model.diffusion", "model.vision")):
                del tensors[key]

    checkpoint.rewrite(keep_language_model)


def truncate(checkpoint: Any) -> None:
    checkpoint.files[0].write_bytes(checkpoint.files[0].read_bytes()[:-100])


def another_tokenizer(checkpoint: Any) -> None:
    file = checkpoint.folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<I511>", "<J511>"))


def no_tokenizer(checkpoint: Any) -> None:
    for file in checkpoint.folder.glob("tokenizer*"):
        file.unlink()


def fewer_codes(checkpoint: Any) -> None:
    file = checkpoint.folder / "ta_tok_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_image_tokens": 256}))
    set_tensor("model.vision_tower.vision_tower.bottleneck.regularizer.embedding.weight", torch.ones(256, 16))(
        checkpoint
    )


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (truncate, r"model\.safetensors: truncated or no safetensors file \([\d,]+ bytes"),
        (lambda c: c.config(hidden_size=128), r"embed_tokens\.weight.* \[896, 64\] instead of \[896, 128\]"),
        (drop("model.layers.1.mlp.up_proj.weight"), r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (drop("model.embed_tokens.weight"), r"1 missing: model\.embed_tokens\.weight"),
        (drop("model.sana.caption_norm.weight"), r"1 missing: model\.sana\.caption_norm\.weight"),
        (set_tensor("model.extra.weight", torch.ones(1)), r"1 unexpected: model\.extra\.weight"),
        (set_tensor("model.norm.weight", torch.ones(3)), r"1 of the wrong shape: model\.norm\.weight \[3\] instead of"),
        (set_tensor("model.norm.weight", torch.ones(64, dtype=torch.int8)), r"1 of dtype int8: model\.norm"),
        (text_only, "is a text-only language model"),
        (lambda c: (c.folder / "config.json").unlink(), r"config\.json: no such file"),
        (lambda c: (c.folder / "config.json").write_text("{"), r"config\.json: not readable as JSON"),
        (lambda c: c.config(num_hidden_layers=None), r"config\.json: num_hidden_layers missing"),
        (lambda c: c.config(num_hidden_layers=1), r"unexpected: model\.layers\.1\."),
        (lambda c: c.config(vocab_size=800), r"vocab_size 800 has no room"),
        (lambda c: c.config(image_start_token_id=385), "config.json says image_start_token_id 385, the tokenizer 384"),
        (lambda c: c.config(num_image_tokens=65536), "config.json says num_image_tokens 65536, the tokenizer 512"),
        (another_tokenizer, "config.json says num_image_tokens 512, the tokenizer 511"),
        (no_tokenizer, "its tokenizer cannot be loaded"),
        (fewer_codes, "TA-Tok has 256 codes, the policy 512 image tokens"),
    ],
)  # fmt: skip
def test_bad_input_is_one_error_and_nothing_is_written(
    upstream: Callable, tmp_path: Path, damage: Callable[[Any], Any], match: str
) -> None:
    checkpoint = upstream()
    damage(checkpoint)
    with pytest.raises(UserError, match=match):
        convert(checkpoint.folder, tmp_path / "out" / "model")
    assert not (tmp_path / "out").exists()


def test_the_published_sizes_are_assumed_where_no_config_is_given(upstream: Callable, tmp_path: Path) -> None:
    checkpoint = upstream()
    shutil.move(checkpoint.folder / "sana_config.json", tmp_path / "given.json")
    with pytest.raises(UserError, match=r"transformer_blocks\.\{0-19\}|transformer_blocks\.\{2-19\}"):
        convert(checkpoint.folder, tmp_path / "model")
    converted(checkpoint, tmp_path / "model", sana_config=tmp_path / "given.json")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("/nowhere", "no such folder, and no hub id"),
        ("~nobody-here/x", "no such folder, and no hub id"),
        ("nowhere", "no hub id"),
        (".", "config.json: no such file"),
    ],
)
def test_a_source_that_is_none(tmp_path: Path, monkeypatch, source: str, match: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=match):
        convert(source, tmp_path / "model")


def test_a_model_folder_is_no_source(upstream: Callable, tmp_path: Path) -> None:
    folder = converted(upstream(), tmp_path / "model")
    with pytest.raises(UserError, match="is a model folder already"):
        convert(folder, tmp_path / "again")


def test_a_used_target_is_left_alone(upstream: Callable, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        convert(upstream().folder, tmp_path / "model")
    assert (tmp_path / "model" / "mine.txt").read_text() == "mine"


def test_a_disk_without_room_is_seen_before_writing(upstream: Callable, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(staging, "RESERVE", 10**18)
    with pytest.raises(UserError, match=r"needs 1\.\d MB, .* are free on its disk"):
        convert(upstream().folder, tmp_path / "out" / "model")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Lets writing fail as on a full disk, for real: files of this process may not grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_leaves_nothing(upstream: Callable, tmp_path: Path, file_limit: Callable) -> None:
    folder = upstream().folder
    file_limit(200_000)
    with pytest.raises(UserError, match="not written .*; nothing is left of it"):
        convert(folder, tmp_path / "out" / "model")
    assert not list((tmp_path / "out").iterdir())


def killed_while_converting(source: Path, target: Path) -> int:
    """Converts in a copy of this process, which is killed when the autoencoder is written; returns the signal."""
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])

    def die(line: str) -> None:
        if line.startswith("wrote renderer/vae"):
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        torch.set_num_threads(1)  # a copied process has no worker threads
        convert(source, target, tell=die)
    finally:
        os._exit(1)


def test_a_killed_conversion_leaves_no_folder_that_looks_complete(upstream: Callable, tmp_path: Path) -> None:
    folder, target = upstream().folder, tmp_path / "model"
    assert killed_while_converting(folder, target) == signal.SIGKILL
    assert not target.exists()
    left = tmp_path / "model.partial"
    assert list(left.rglob("*.safetensors"))
    with pytest.raises(UserError, match="is not a complete model folder"):
        model_folder.ModelFolder(left, *model_folder.GENERATING)
    convert(folder, target)
    assert model_folder.ModelFolder(target, *model_folder.GENERATING) and not left.exists()


CONVERSION = """
import sys
from blip3o_rl.checkpoint.convert import convert
convert(sys.argv[1], sys.argv[2] + "0", dry_run=True)
print("start", flush=True)
sys.stdin.readline()
convert(sys.argv[1], sys.argv[2])
"""


def own_memory(process: int) -> int:
    """Bytes of a process that are no mapped files, which the system drops when it needs room; 0 when it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read through /proc")
def test_memory_does_not_grow_with_the_checkpoint(upstream: Callable, tmp_path: Path) -> None:
    checkpoint = upstream(shards=2, intermediate=32_768, layers=4, dtype=torch.float32)
    assert min(file.stat().st_size for file in checkpoint.files) > 44e6
    arguments = [sys.executable, "-c", CONVERSION, str(checkpoint.folder), str(tmp_path / "model")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout and child.stdout.readline() == "start\n"
        before = peak = own_memory(child.pid)
        child.stdin.write("\n")
        child.stdin.close()
        while child.poll() is None:
            peak = max(peak, own_memory(child.pid))
    assert child.returncode == 0 and before > 0
    print(f"peak {(peak - before) / 1e6:.0f} MB above start")
    assert peak - before < 22e6, "half a shard"


def write_full_size(folder: Path, modules: dict[str, Any], sizes: dict[str, Any]) -> None:
    """A checkpoint of the published sizes as a file with holes: a real header, and zeros that take no room."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in manifest(modules).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    tokenizer, layout = parts.make_tokenizer([PROMPT], image_tokens=65536)
    tokenizer.save_pretrained(folder)
    fields = sizes | layout.config_fields() | {"eos_token_id": tokenizer.eos_token_id}
    (folder / "config.json").write_text(json.dumps(fields))


def test_a_full_size_checkpoint_is_planned_from_its_header_with_the_shipped_configs(
    tmp_path: Path, full_size: dict, full_size_policy: Blip3oNextConfig
) -> None:
    write_full_size(tmp_path / "upstream", full_size, full_size_policy.to_dict())
    plan = convert(tmp_path / "upstream", tmp_path / "model", dry_run=True)
    counts = {part: sum(math.prod(t.shape) for t in tensors.values()) for part, tensors in plan.tensors.items()}
    assert counts["policy"] == 1_854_256_128 and counts["renderer/transformer"] == 1_604_641_952
    assert plan.size == 2 * sum(counts.values()) > 8.5e9
    assert (plan.policy.vocab_size, plan.policy.hidden_size, plan.layout.grid) == (217210, 2048, 27)
    assert [text for text in plan.warnings if "l2_normalized is not in the checkpoint" in text]
