"""The small model's directory without weights: config, tokenizer, chat template, image processor."""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from actfer_jax import facs
from actfer_jax.agent import prompts
from actfer_jax.agent.formats.actfer import call_text
from actfer_jax.agent.parser import ToolCall
from actfer_jax.agent.tools import TOOL_SCHEMAS
from actfer_jax.models.companions import write_processor_config
from actfer_jax.models.huggingface import POLICY
from actfer_jax.outputs import publish, staged

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("think", "tool_call", "tool_response", "aus", "answer")
VOCABULARY_SIZE = 1024

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string %}{{ content }}{% else -%}
{%- for part in content -%}
{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if tools or (messages and messages[0].role == 'system') -%}
<|im_start|>system
{% if messages[0].role == 'system' -%}
{{ render(messages[0].content) }}{% if tools %}{{ '\\n\\n' }}{% endif %}
{%- endif -%}
{%- if tools -%}
# Tools
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor -%}
{%- endif -%}
<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' or message.role == 'assistant' -%}
<|im_start|>{{ message.role }}
{{ render(message.content) }}
{%- for call in message.tool_calls or [] -%}
{%- if not loop.first or message.content %}{{ '\\n' }}{% endif -%}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% elif message.role == 'tool' -%}
<|im_start|>user
<tool_response>
{{ render(message.content) }}
</tool_response><|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

CONFIG = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": VOCABULARY_SIZE,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_heads": 4,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 128,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1, 2],
        "hidden_act": "gelu_pytorch_tanh",
    },
}  # fmt: skip

PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "size": {"shortest_edge": 2048, "longest_edge": 9216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def corpus() -> Iterator[str]:
    """Every phrase of a trace, the commoner ones more often."""
    aus = [" ".join(f"AU{au}" for au in facs.AU_NAMES), *(f"AU{au}" for au in facs.AU_NAMES)]
    for region in facs.REGIONS:
        yield from [f"{region}: {words}" for words in aus]
        yield from [f"{region} of face {i}, {size}" for i in range(3) for size in ("96x64", "64x96", "64x64")] * 3
        yield from [call_text(ToolCall("zoom", {"region": region}))] * 10
    yield from [call_text(ToolCall("align_face", {})), call_text(ToolCall("detect_faces", {}))] * 10
    yield from [
        f"{word} {text}" for text in (prompts.ANSWER_NOW, prompts.ZOOM_FIRST) for word in ("face.", "96x64")
    ] * 10
    yield from ["Find the face.", prompts.NO_CALLS_LEFT] * 10
    yield from [prompts.make_prompt("brief", facs.EMOTIONS).request] * 10
    yield from ["face 0 aligned, 64x64", "face 1 aligned, 64x64", "no face found"] * 10
    yield from ["user\n", "assistant\n", "system\n", "\n"] * 10
    yield from [*facs.EMOTIONS, "none", *aus] * 10
    yield from [*facs.AU_NAMES.values(), json.dumps(TOOL_SCHEMAS)]
    yield " ".join(str(number) for number in range(1001))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer in which a word with the space before it is at most one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s]+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tags = [mark for tag in TAGS for mark in (f"<{tag}>", f"</{tag}>")]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(tags) - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def write_demo(out: Path) -> None:
    """Writes the directory; files of weights that are there stay.

    Raises:
      OutputError: it holds something else than a policy, or cannot be written.
    """
    with staged(out, POLICY) as staging:
        _write_files(staging)
        publish(staging, out, POLICY, stay=True)


def _write_files(out: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(out)
    ids = tokenizer.get_vocab()
    config = CONFIG | {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    generation = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"], "do_sample": False}
    for name, content in (("config", config), ("preprocessor_config", PREPROCESSOR), ("generation_config", generation)):
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    write_processor_config(out)
