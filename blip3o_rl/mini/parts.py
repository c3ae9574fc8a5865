"""The mini model's sizes: the classes of the 3B model, each made small enough for a CPU.

What differs in kind from the 3B model, and why:
- SANA gets its sine-cosine positional embedding (`interpolation_scale` 1), which upstream switches off. Without
  it a small model needs far longer to learn where in the image it is.
- The autoencoder compresses by 8 instead of 32, for images of 64 px.
- The image vocabulary has 2,048 entries instead of 65,536, so that every one of them is seen often.
- Edits go through the policy alone: the reference connector is there, with both uses of the latent switched off. Images
  this small lose next to nothing on the way through 81 tokens.
Head sizes are kept (32 in SANA's linear attention, 64 in the policy): SANA's attention is ill-conditioned below 32.
"""

from __future__ import annotations

import json

from diffusers import AutoencoderDC, SanaTransformer2DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.model.renderer import Connector, ReferenceConnector, Renderer
from blip3o_rl.model.token_layout import CHATML, TokenLayout, add_image_tokens, chat_messages, edit_messages

IMAGE_SIZE = 64
TOKENIZER_INPUT = 108
"""Side of TA-Tok's input: 27 patches of 4 px."""
NUM_IMAGE_TOKENS = 2048
HIDDEN = 256
MERGES = 400
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def make_vae() -> AutoencoderDC:
    """An untrained autoencoder: 64 px images to 8 x 8 latents of 8 channels."""
    widths, layers = (32, 32, 64, 128), (0, 1, 2, 2)
    return AutoencoderDC(
        latent_channels=8,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
    )


def make_image_tokenizer() -> TATok:
    """An untrained TA-Tok on a 27 x 27 grid of 4 px patches."""
    return TATok(
        image_size=TOKENIZER_INPUT,
        patch_size=TOKENIZER_INPUT // 27,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=256,
        bottleneck_dim=16,
        num_image_tokens=NUM_IMAGE_TOKENS,
    )


def make_renderer(vae: AutoencoderDC) -> Renderer:
    """Untrained connectors and an untrained diffusion transformer around an autoencoder."""
    transformer = SanaTransformer2DModel(
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_attention_heads=6,
        attention_head_dim=32,
        num_layers=4,
        num_cross_attention_heads=6,
        cross_attention_head_dim=32,
        cross_attention_dim=192,
        caption_channels=192,
        mlp_ratio=2.5,
        sample_size=IMAGE_SIZE // 8,
        qk_norm="rms_norm_across_heads",
        interpolation_scale=1.0,
    )
    unused = ReferenceConnector(vae.config.latent_channels, 192, cross_attention=False, noise_injection=False)
    return Renderer(Connector(HIDDEN, 192), transformer, vae, unused)


def make_tokenizer(
    prompts: list[str], image_tokens: int = NUM_IMAGE_TOKENS, text_tokens: int | None = None
) -> tuple[PreTrainedTokenizerFast, TokenLayout]:
    """A byte-level BPE tokenizer fitted to the prompts, with Qwen's special tokens and the image tokens.

    `text_tokens` is the size of the text vocabulary, filled up with tokens that no text has; None: as it comes out.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + MERGES, initial_alphabet=alphabet, show_progress=False)
    texts = [turn["content"] for prompt in prompts for turn in (*chat_messages(prompt), *edit_messages(prompt, 1))]
    core.train_from_iterator([*texts, "system\nuser\nassistant\n"], trainer)
    if text_tokens is not None:
        fields = json.loads(core.to_str())
        vocabulary = fields["model"]["vocab"]
        free = range(len(vocabulary), text_tokens - len(QWEN_SPECIALS))
        vocabulary |= {f"<unused{number}>": number for number in free}
        core = Tokenizer.from_str(json.dumps(fields))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="left"
    )
    tokenizer.add_tokens(list(QWEN_SPECIALS), special_tokens=True)
    tokenizer.chat_template = CHATML
    return tokenizer, add_image_tokens(tokenizer, image_tokens)


def make_policy(tokenizer: PreTrainedTokenizerFast, layout: TokenLayout) -> Blip3oNextForCausalLM:
    """An untrained policy of about four million parameters."""
    config = Blip3oNextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **layout.config_fields(),
    )
    return Blip3oNextForCausalLM(config)
