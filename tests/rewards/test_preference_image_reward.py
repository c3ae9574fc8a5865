"""ImageReward on small random weights in the published layout.

The expected numbers come from BLIP written out here on the checkpoint's own tensor names, without transformers.
"""

import json
import string

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, gelu, layer_norm, linear
from transformers import BertTokenizer

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.preference.image_reward import CONTEXT, ImageReward
from blip3o_rl.scoring.api import Sample

SIDE, PATCH, VISION, TEXT, HEADS = 32, 8, 128, 32, 4
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "red", "cat", "dog", *(f"##{c}" for c in string.ascii_lowercase)]
MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": TEXT,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "model_type": "bert",
    "num_attention_heads": HEADS,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": len(WORDS) + 2,
    "encoder_width": 48,
    "add_cross_attention": True,
}
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    for seed, (height, width) in enumerate([(48, 48), (40, 53), (53, 40), (20, 20)])
]
PROMPTS = ["a red cat", "a dog", "a Red CAT", "dog " * 60]
SAMPLES = [Sample(str(i), prompt, image) for i, (prompt, image) in enumerate(zip(PROMPTS, IMAGES, strict=True))]


@pytest.fixture(scope="module")
def state():
    """Every tensor of ImageReward.pt, small; also those that scoring does not use."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    def affine(name, rows, columns):
        return {f"{name}.weight": random(rows, columns), f"{name}.bias": random(rows)}

    def norm(name, width):
        return {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}

    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    state = {
        # Small, so that the first layer norm feels its epsilon.
        f"{vision}cls_token": random(1, 1, VISION) / 50,
        f"{vision}pos_embed": random(1, (SIDE // PATCH) ** 2 + 1, VISION) / 50,
        f"{vision}patch_embed.proj.weight": random(VISION, 3, PATCH, PATCH) / 400,
        f"{vision}patch_embed.proj.bias": random(VISION) / 50,
        **norm(f"{vision}norm", VISION),
        f"{text}embeddings.position_ids": torch.arange(40)[None],
        f"{text}embeddings.word_embeddings.weight": random(len(WORDS) + 2, TEXT),
        f"{text}embeddings.position_embeddings.weight": random(40, TEXT),
        **norm(f"{text}embeddings.LayerNorm", TEXT),
        **affine("blip.vision_proj", 256, VISION),
        **affine("blip.text_proj", 256, TEXT),
    }
    for layer in range(2):
        block = f"{vision}blocks.{layer}."
        state |= norm(f"{block}norm1", VISION) | norm(f"{block}norm2", VISION)
        state |= affine(f"{block}attn.qkv", 3 * VISION, VISION) | affine(f"{block}attn.proj", VISION, VISION)
        state |= affine(f"{block}mlp.fc1", 4 * VISION, VISION) | affine(f"{block}mlp.fc2", VISION, 4 * VISION)
        block = f"{text}encoder.layer.{layer}."
        for name, width in (("attention", TEXT), ("crossattention", VISION)):
            state |= affine(f"{block}{name}.self.query", TEXT, TEXT)
            state |= affine(f"{block}{name}.self.key", TEXT, width) | affine(f"{block}{name}.self.value", TEXT, width)
            state |= affine(f"{block}{name}.output.dense", TEXT, TEXT)
            state |= norm(f"{block}{name}.output.LayerNorm", TEXT)
        state |= affine(f"{block}intermediate.dense", 64, TEXT) | affine(f"{block}output.dense", TEXT, 64)
        state |= norm(f"{block}output.LayerNorm", TEXT)
    for number, (before, after) in {0: (TEXT, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
        state |= affine(f"mlp.layers.{number}", after, before)
    return state


def save(folder, state):
    folder.mkdir()
    torch.save(state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    return str(folder), str(folder / "bert")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, state):
    return save(tmp_path_factory.mktemp("hub") / "image-reward", state)


@pytest.fixture(scope="module")
def reward(folder):
    return ImageReward(*folder, device="cpu")


class Blip:
    """The published forward pass for one prompt without padding and one image."""

    def __init__(self, state):
        self.state = state

    def affine(self, name, x):
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x, eps):
        return layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def attend(self, q, k, v, heads):
        q, k, v = (x.view(len(x), heads, -1).transpose(0, 1) for x in (q, k, v))
        return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(0, 1).flatten(1)

    def see(self, image):
        at = "blip.visual_encoder."
        x = conv2d(
            pixels(image)[None],
            self.state[f"{at}patch_embed.proj.weight"],
            self.state[f"{at}patch_embed.proj.bias"],
            stride=PATCH,
        )
        x = torch.cat([self.state[f"{at}cls_token"][0], x[0].flatten(1).T]) + self.state[f"{at}pos_embed"][0]
        for layer in range(2):
            block = f"{at}blocks.{layer}."
            qkv = self.affine(f"{block}attn.qkv", self.norm(f"{block}norm1", x, 1e-6)).chunk(3, dim=-1)
            x = x + self.affine(f"{block}attn.proj", self.attend(*qkv, heads=VISION // 64))
            y = gelu(self.affine(f"{block}mlp.fc1", self.norm(f"{block}norm2", x, 1e-6)))
            x = x + self.affine(f"{block}mlp.fc2", y)
        return self.norm(f"{at}norm", x, 1e-6)

    def read(self, prompt, image):
        """First state of the text tower."""
        at, seen = "blip.text_encoder.", self.see(image)
        ids = [WORDS.index(word) for word in ["[CLS]", *prompt.lower().split()[: CONTEXT - 2], "[SEP]"]]
        x = self.state[f"{at}embeddings.word_embeddings.weight"][ids]
        x = x + self.state[f"{at}embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{at}embeddings.LayerNorm", x, 1e-12)
        for layer in range(2):
            block = f"{at}encoder.layer.{layer}."
            for name, source in (("attention", None), ("crossattention", seen)):
                source = x if source is None else source
                query, key, value = (
                    self.affine(f"{block}{name}.self.{part}", y)
                    for part, y in (("query", x), ("key", source), ("value", source))
                )
                y = self.affine(f"{block}{name}.output.dense", self.attend(query, key, value, HEADS))
                x = self.norm(f"{block}{name}.output.LayerNorm", x + y, 1e-12)
            y = self.affine(f"{block}output.dense", gelu(self.affine(f"{block}intermediate.dense", x)))
            x = self.norm(f"{block}output.LayerNorm", x + y, 1e-12)
        return x[0]

    def reward(self, prompt, image):
        x = self.read(prompt, image)
        for number in (0, 2, 4, 6, 7):
            x = self.affine(f"mlp.layers.{number}", x)
        return (float(x) - 0.16717362830052426) / 1.0333394966054072


def pixels(image):
    """Shorter side to SIDE with Pillow's bicubic, center crop, CLIP's mean and deviation."""
    height, width = image.shape[:2]
    short = min(height, width)
    size = int(SIDE * width / short), int(SIDE * height / short)
    left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
    image = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
    return torch.tensor((np.asarray(image) / 255 - MEAN) / STD).permute(2, 0, 1).float()


def test_the_port_gives_the_published_network_s_numbers(reward, state):
    """Padding to 35 tokens, upper case and a prompt of 60 words included."""
    expected = [Blip(state).reward(sample.prompt, sample.image) for sample in SAMPLES]
    np.testing.assert_allclose([score.value for score in reward.score(SAMPLES)], expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.01


def test_batches_change_nothing(folder, reward):
    whole = [score.value for score in reward.score(SAMPLES)]
    in_twos = ImageReward(*folder, device="cpu", batch_size=2).score(SAMPLES)
    np.testing.assert_allclose([score.value for score in in_twos], whole, atol=1e-5)


def test_a_weights_file_finds_its_config_next_to_it(folder, reward):
    named = ImageReward(f"{folder[0]}/ImageReward.pt", folder[1], device="cpu")
    assert named.score(SAMPLES[:1])[0].value == pytest.approx(reward.score(SAMPLES[:1])[0].value)


def test_a_known_order_is_kept(tmp_path, state):
    """The head's first layer is solved for three values on what the text tower reads from three images."""
    read = torch.stack([Blip(state).read("a cat", image) for image in IMAGES[:3]]).double()
    direction = torch.linalg.lstsq(read, torch.tensor([[-1.0], [1.5], [0.2]]).double()).solution.T.float()
    head = {f"mlp.layers.{number}.weight": torch.ones(1, 1) for number in (2, 4, 6, 7)}
    head |= {"mlp.layers.0.weight": direction} | {f"mlp.layers.{number}.bias": torch.zeros(1) for number in range(8)}
    reward = ImageReward(*save(tmp_path / "built", state | head), device="cpu")
    bad, good, hacked = (s.value for s in reward.score([Sample(str(i), "a cat", IMAGES[i]) for i in range(3)]))
    assert bad < hacked < good
    assert good - bad == pytest.approx(2.5 / 1.0333394966054072, abs=1e-2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blip.visual_encoder.blocks.1.attn.qkv.bias", "lacks 1 of the tensors of BlipVisionModel"),
        ("blip.visual_encoder.pos_embed", "has no BLIP image tower"),
        ("blip.text_encoder.encoder.layer.1.crossattention.self.key.weight", "lacks 1 of the tensors of BlipTextModel"),
        ("mlp.layers.4.weight", "'mlp.layers.4.weight' or its bias is missing"),
    ],
)
def test_a_checkpoint_with_a_gap_is_refused(tmp_path, state, name, message):
    folder = save(tmp_path / "gap", {key: value for key, value in state.items() if key != name})
    with pytest.raises(UserError, match=f"checkpoint: .*{message}"):
        ImageReward(*folder, device="cpu")


def test_a_missing_med_config_is_named(tmp_path, state):
    folder = save(tmp_path / "bare", state)
    (tmp_path / "bare" / "med_config.json").unlink()
    with pytest.raises(UserError, match="checkpoint: .* has no med_config.json"):
        ImageReward(*folder, device="cpu")
