"""PickScore, CLIPScore, HPSv2 and the aesthetic score on small random weights in the published layouts.

The expected numbers come from a CLIP written out here on open_clip's tensor names, without transformers, and from
preprocessing written out with Pillow.
"""

import json
import os
import pickle
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.preference.aesthetic import AestheticScore
from blip3o_rl.rewards.preference.clip import CLIPScore, HPSv2, PickScore, from_open_clip
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric

SIDE, PATCH, CONTEXT, DIM = 32, 8, 12, 16
HEADS = {"visual.": 3, "": 2}
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
VOCABULARY = {
    piece: number
    for number, piece in enumerate(
        [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    )
}
START, END = VOCABULARY["<|startoftext|>"], VOCABULARY["<|endoftext|>"]
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    for seed, (height, width) in enumerate([(48, 48), (40, 53), (53, 40), (32, 32), (20, 20)])
]
PROMPTS = ["a red cat", "a dog", "a red cat", "two cats on a very long red sofa with a dog", "cat"]
SAMPLES = [Sample(str(i), prompt, image) for i, (prompt, image) in enumerate(zip(PROMPTS, IMAGES, strict=True))]


def random_state(seed=0):
    """A CLIP as open_clip saves it: two blocks a tower, image width 24, text width 16."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator) / max(shape[-1], 1) ** 0.5

    state = {
        "logit_scale": torch.tensor(4.60517),
        "positional_embedding": random(CONTEXT, 16),
        "token_embedding.weight": random(len(VOCABULARY), 16),
        "text_projection": random(16, DIM),
        "ln_final.weight": 1 + random(16),
        "ln_final.bias": random(16),
        "visual.class_embedding": random(24),
        "visual.positional_embedding": random((SIDE // PATCH) ** 2 + 1, 24),
        "visual.conv1.weight": random(24, 3, PATCH, PATCH),
        "visual.proj": random(24, DIM),
    }
    for name in ("visual.ln_pre", "visual.ln_post"):
        state |= {f"{name}.weight": 1 + random(24), f"{name}.bias": random(24)}
    for tower, width in (("visual.", 24), ("", 16)):
        for block in range(2):
            at = f"{tower}transformer.resblocks.{block}."
            for name in ("ln_1", "ln_2"):
                state |= {f"{at}{name}.weight": 1 + random(width), f"{at}{name}.bias": random(width)}
            state |= {f"{at}attn.in_proj_weight": random(3 * width, width), f"{at}attn.in_proj_bias": random(3 * width)}
            for name, rows, columns in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 4 * width, width),
                ("mlp.c_proj", width, 4 * width),
            ):
                state |= {f"{at}{name}.weight": random(rows, columns), f"{at}{name}.bias": random(rows)}
    return state


def config(activation):
    return CLIPConfig(
        text_config={
            "vocab_size": len(VOCABULARY),
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS[""],
            "max_position_embeddings": CONTEXT,
            "hidden_act": activation,
            "bos_token_id": START,
            "eos_token_id": END,
            "pad_token_id": END,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS["visual."],
            "image_size": SIDE,
            "patch_size": PATCH,
            "hidden_act": activation,
        },
        projection_dim=DIM,
    )


def save_hub_folder(folder: Path, activation="gelu", state=None):
    """config, weights, tokenizer and the old-style preprocessor_config.json that the hub repositories have."""
    folder.mkdir()
    model = CLIPModel(config(activation))
    if state is not None:
        model.load_state_dict(from_open_clip(state))
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=VOCABULARY, merges=[]).save_pretrained(folder)
    preprocessor = {
        "crop_size": SIDE,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": MEAN.tolist(),
        "image_std": STD.tolist(),
        "resample": 3,
        "size": SIDE,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return str(folder)


def ids_of(prompt):
    """Letters, the last of a word with its end mark; cut to the context with the end token kept."""
    ids = [VOCABULARY[f"{c}</w>"] if last else VOCABULARY[c] for word in prompt.split() for c, last in letters(word)]
    return [START, *ids[: CONTEXT - 2], END]


def letters(word):
    return [(c, i == len(word) - 1) for i, c in enumerate(word)]


def cropped(image):
    """Shorter side to SIDE with Pillow's bicubic, center crop, mean and deviation."""
    height, width = image.shape[:2]
    short = min(height, width)
    size = int(SIDE * width / short), int(SIDE * height / short)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    image = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
    return torch.tensor((np.asarray(image) / 255 - MEAN) / STD).permute(2, 0, 1).float()


def tower(state, at, x, mask, activation):
    """Two pre-norm transformer blocks; x [L, D]."""

    def norm(name, values):
        return torch.nn.functional.layer_norm(
            values, values.shape[-1:], state[f"{at}{name}.weight"], state[f"{at}{name}.bias"]
        )

    for block in range(2):
        name = f"transformer.resblocks.{block}."
        y = norm(name + "ln_1", x) @ state[f"{at}{name}attn.in_proj_weight"].T + state[f"{at}{name}attn.in_proj_bias"]
        q, k, v = (part.view(len(x), HEADS[at], -1).transpose(0, 1) for part in y.chunk(3, dim=-1))
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + mask).softmax(-1)
        y = (weights @ v).transpose(0, 1).reshape(len(x), -1)
        x = x + y @ state[f"{at}{name}attn.out_proj.weight"].T + state[f"{at}{name}attn.out_proj.bias"]
        y = norm(name + "ln_2", x) @ state[f"{at}{name}mlp.c_fc.weight"].T + state[f"{at}{name}mlp.c_fc.bias"]
        y = torch.nn.functional.gelu(y) if activation == "gelu" else y * torch.sigmoid(1.702 * y)
        x = x + y @ state[f"{at}{name}mlp.c_proj.weight"].T + state[f"{at}{name}mlp.c_proj.bias"]
    return x


def image_embedding(state, pixels, activation="gelu"):
    patches = torch.nn.functional.conv2d(pixels[None], state["visual.conv1.weight"], stride=PATCH)[0].flatten(1).T
    x = torch.cat([state["visual.class_embedding"][None], patches]) + state["visual.positional_embedding"]
    x = torch.nn.functional.layer_norm(x, (24,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
    x = tower(state, "visual.", x, 0.0, activation)[0]
    x = torch.nn.functional.layer_norm(x, (24,), state["visual.ln_post.weight"], state["visual.ln_post.bias"])
    return unit(x @ state["visual.proj"])


def text_state(state, prompt, activation="gelu"):
    ids = ids_of(prompt)
    x = state["token_embedding.weight"][ids] + state["positional_embedding"][: len(ids)]
    x = tower(state, "", x, torch.full((len(ids), len(ids)), -torch.inf).triu(1), activation)[-1]
    return torch.nn.functional.layer_norm(x, (16,), state["ln_final.weight"], state["ln_final.bias"])


def text_embedding(state, prompt, activation="gelu"):
    return unit(text_state(state, prompt, activation) @ state["text_projection"])


def unit(x):
    return x / x.norm()


def cosines(state, activation="gelu", preprocess=cropped):
    return [
        float(image_embedding(state, preprocess(s.image), activation) @ text_embedding(state, s.prompt, activation))
        for s in SAMPLES
    ]


def values(scores):
    return [score.value for score in scores]


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, state):
    return save_hub_folder(tmp_path_factory.mktemp("hub") / "vit-h", "gelu", state)


@pytest.fixture(scope="module")
def pickscore(folder):
    return PickScore(folder, folder, device="cpu")


def test_pickscore_is_the_scaled_cosine_over_26(pickscore, state):
    scores = pickscore.score(SAMPLES)
    expected = [float(state["logit_scale"].exp()) * cosine for cosine in cosines(state)]
    np.testing.assert_allclose([score.components["raw"] for score in scores], expected, rtol=0, atol=2e-3)
    np.testing.assert_allclose(values(scores), np.array(expected) / 26, rtol=0, atol=1e-4)


def test_clipscore_is_the_scaled_cosine_over_30_with_the_activation_of_its_config(tmp_path, state):
    scores = CLIPScore(save_hub_folder(tmp_path / "vit-l", "quick_gelu", state), device="cpu").score(SAMPLES)
    expected = 100 * np.array(cosines(state, "quick_gelu"))
    np.testing.assert_allclose([score.components["raw"] for score in scores], expected, rtol=0, atol=2e-3)
    np.testing.assert_allclose(values(scores), expected / 30, rtol=0, atol=1e-4)
    assert np.abs(np.array(cosines(state, "gelu")) * 100 - expected).max() > 0.01


def test_batches_and_repeated_prompts_change_nothing(folder, pickscore):
    one_by_one = [pickscore.score([sample])[0].value for sample in SAMPLES]
    np.testing.assert_allclose(values(pickscore.score(SAMPLES)), one_by_one, atol=1e-5)
    np.testing.assert_allclose(
        values(PickScore(folder, folder, device="cpu", batch_size=2).score(SAMPLES)), one_by_one, atol=1e-5
    )


def test_a_prompt_beyond_the_context_is_cut_with_its_end_token_kept(pickscore, state):
    long = "two cats on a very long red sofa"
    longer = long + " and a dog"
    assert len(ids_of(long)) == CONTEXT
    first, second = pickscore.score([Sample("a", long, IMAGES[0]), Sample("b", longer, IMAGES[0])])
    assert first.value == pytest.approx(second.value, abs=1e-6)


def test_bfloat16_rounds_the_network_but_not_the_scale(folder, pickscore):
    reward = PickScore(folder, folder, device="cpu", dtype="bfloat16")
    assert reward.encoder.scale == pickscore.encoder.scale
    assert next(reward.encoder.model.parameters()).dtype == torch.bfloat16
    np.testing.assert_allclose(values(reward.score(SAMPLES)), values(pickscore.score(SAMPLES)), atol=0.15)


def padded(image):
    """HPSv2's: longer side to SIDE on a float tensor, black around it. Pillow resizes floats by the same filter."""
    scale = SIDE / max(image.shape[:2])
    height, width = (round(length * scale) for length in image.shape[:2])
    result = np.zeros((SIDE, SIDE, 3))
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    for channel in range(3):
        plane = Image.fromarray((image[..., channel] / 255).astype(np.float32))
        plane = plane.resize((width, height), Image.Resampling.BICUBIC)
        result[top : top + height, left : left + width, channel] = np.asarray(plane)
    return torch.tensor((result - MEAN) / STD).permute(2, 0, 1).float()


@pytest.mark.parametrize("layout", ["pt", "safetensors", "file"])
def test_hpsv2_is_the_plain_cosine_from_the_open_clip_checkpoint(tmp_path, folder, state, layout):
    source = tmp_path
    if layout == "safetensors":
        save_file(state, tmp_path / "HPS_v2.1_compressed.safetensors")
        (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"not read")
    else:
        torch.save({"epoch": 1, "state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
        source = tmp_path / "HPS_v2.1_compressed.pt" if layout == "file" else tmp_path
    scores = HPSv2(str(source), folder, device="cpu").score(SAMPLES)
    np.testing.assert_allclose(values(scores), cosines(state, preprocess=padded), rtol=0, atol=1e-4)


def test_hpsv2_without_averaging_differs_for_shrunk_images_only(tmp_path, folder, state):
    torch.save({"state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    large, exact = Sample("0", "cat", IMAGES[0]), Sample("1", "cat", IMAGES[3])
    old = values(HPSv2(str(tmp_path), folder, antialias=False, device="cpu").score([large, exact]))
    new = values(HPSv2(str(tmp_path), folder, device="cpu").score([large, exact]))
    assert abs(old[0] - new[0]) > 1e-4
    assert old[1] == pytest.approx(new[1], abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_images_may_be_read_only_or_flipped_views(pickscore, tmp_path, folder, state):
    torch.save({"state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    frozen = IMAGES[1].copy()
    frozen.flags.writeable = False
    for reward in (pickscore, HPSv2(str(tmp_path), folder, device="cpu")):
        for view in (frozen, IMAGES[1][:, ::-1]):
            view_score, copy_score = reward.score([Sample("v", "cat", view), Sample("c", "cat", view.copy())])
            assert view_score.value == pytest.approx(copy_score.value, abs=1e-6)


def save_head(file, seed=1):
    generator = torch.Generator().manual_seed(seed)
    widths = {0: (DIM, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    head = {}
    for number, (before, after) in widths.items():
        head[f"layers.{number}.weight"] = torch.randn(after, before, generator=generator) / before**0.5
        head[f"layers.{number}.bias"] = torch.randn(after, generator=generator)
    torch.save(head, file)
    return head


def apply_head(head, x):
    for number in (0, 2, 4, 6, 7):
        x = head[f"layers.{number}.weight"] @ x + head[f"layers.{number}.bias"]
    return float(x)


def test_aesthetic_is_the_linear_head_on_the_unit_embedding(tmp_path, folder, state):
    head = save_head(tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    scores = AestheticScore(str(tmp_path), folder, device="cpu", batch_size=2).score(SAMPLES)
    expected = [apply_head(head, image_embedding(state, cropped(image))) for image in IMAGES]
    np.testing.assert_allclose(values(scores), expected, rtol=0, atol=1e-4)


GOOD, HACKED, BAD = 0.9, 0.5, 0.1


def test_each_clip_reward_keeps_a_known_order(tmp_path, state):
    """The text projection is solved for a text embedding whose cosines with three images are in a chosen order."""
    images = IMAGES[:3]
    for name, preprocess in (("pick", cropped), ("hps", padded)):
        embedded = torch.stack([image_embedding(state, preprocess(image)) for image in images])
        target = torch.linalg.lstsq(embedded, torch.tensor([[BAD], [GOOD], [HACKED]])).solution[:, 0]
        read = text_state(state, "cat")
        built = state | {"text_projection": torch.outer(read, target) / (read @ read)}
        hub = save_hub_folder(tmp_path / name, "gelu", built)
        torch.save({"state_dict": built}, tmp_path / name / "HPS_v2.1_compressed.pt")
        reward = PickScore(hub, hub, device="cpu") if name == "pick" else HPSv2(hub, hub, device="cpu")
        bad, good, hacked = values(reward.score([Sample(str(i), "cat", p) for i, p in enumerate(images)]))
        assert bad < hacked < good
        assert good / hacked == pytest.approx(GOOD / HACKED, rel=1e-3)


def test_aesthetic_keeps_a_known_order(tmp_path, folder, state):
    images = torch.stack([image_embedding(state, cropped(image)) for image in IMAGES[:3]])
    direction = torch.linalg.lstsq(images, torch.tensor([[BAD], [GOOD], [HACKED]])).solution.T
    head = {f"layers.{n}.weight": torch.ones(1, 1) for n in (2, 4, 6, 7)} | {"layers.0.weight": direction}
    head |= {f"layers.{n}.bias": torch.zeros(1) for n in (0, 2, 4, 6, 7)}
    torch.save(head, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    scores = values(AestheticScore(str(tmp_path), folder, device="cpu").score(SAMPLES[:3]))
    np.testing.assert_allclose(scores, [BAD, GOOD, HACKED], atol=1e-4)


def test_a_rubric_builds_one_from_a_config(folder, pickscore):
    entry = {"name": "blip3o_rl.rewards.preference.clip:PickScore", "model": folder, "processor": folder}
    rubric = build_rubric({"pick": {**entry, "weight": 2.0, "device": "cpu"}})
    rubric.self_check()
    scores = rubric.score(SAMPLES)
    np.testing.assert_allclose(values(scores), 2 * np.array(values(pickscore.score(SAMPLES))), atol=1e-5)
    assert scores[0].components["pick/raw"] == pytest.approx(26 * scores[0].components["pick"])


@pytest.mark.parametrize("name", ["visual.transformer.resblocks.1.mlp.c_fc.bias", "ln_final.weight", "logit_scale"])
def test_a_missing_tensor_is_refused_and_not_filled_with_random_numbers(tmp_path, folder, state, name):
    torch.save({"state_dict": {k: v for k, v in state.items() if k != name}}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(UserError, match="checkpoint: .* lacks 1 of the tensors of CLIPModel"):
        HPSv2(str(tmp_path), folder, device="cpu")


def test_other_wrong_checkpoints_are_refused(tmp_path, folder, state):
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save(state | {"ln_final.weight": torch.ones(8)}, file)
    with pytest.raises(UserError, match="another shape .first: text_model.final_layer_norm.weight"):
        HPSv2(str(file), folder, device="cpu")
    torch.save(state | {"visual.trunk.stem.weight": torch.ones(8)}, file)
    with pytest.raises(UserError, match="'visual.trunk.stem.weight' is not part of an open_clip ViT"):
        HPSv2(str(file), folder, device="cpu")
    torch.save([1, 2], file)
    with pytest.raises(UserError, match="holds list, not a state dict"):
        HPSv2(str(file), folder, device="cpu")
    save_head(tmp_path / "head.pth")
    head = torch.load(tmp_path / "head.pth", weights_only=True)
    torch.save({k: v for k, v in head.items() if k != "layers.6.bias"}, tmp_path / "head.pth")
    with pytest.raises(UserError, match="head: tensor 'layers.6.weight' or its bias is missing"):
        AestheticScore(str(tmp_path / "head.pth"), folder, device="cpu")


class Executed:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_checkpoint_is_not_executed(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("HPS_v2.1_compressed.pt").write_bytes(pickle.dumps({"state_dict": Executed()}, protocol=2))
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        HPSv2("HPS_v2.1_compressed.pt", folder, device="cpu")
    torch.save({"state_dict": Executed()}, "HPS_v2.1_compressed.pt")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        HPSv2("HPS_v2.1_compressed.pt", folder, device="cpu")
    assert not Path("executed").exists()


def test_sources_and_settings_that_do_not_exist_are_named(tmp_path, folder, monkeypatch):
    with pytest.raises(UserError, match="model: there is no ./nowhere"):
        PickScore("./nowhere", folder)
    with pytest.raises(UserError, match="checkpoint: .* has no HPS_v2.1_compressed.pt"):
        HPSv2(str(tmp_path), folder)
    with pytest.raises(UserError, match="dtype: is 'int8'"):
        PickScore(folder, folder, dtype="int8")
    with pytest.raises(UserError, match="device=quantum"):
        PickScore(folder, folder, device="quantum")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="model: nobody/no-such-model cannot be loaded, .*set model to a local copy"):
        PickScore("nobody/no-such-model", folder)
    with pytest.raises(UserError, match="checkpoint: nobody/no-such-file@v1 cannot be loaded"):
        HPSv2("nobody/no-such-file@v1", folder)
