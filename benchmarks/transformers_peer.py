"""What a user of transformers and PyTorch would write for the work of this package: the other side of `peers.py`."""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, LogitsProcessorList, Qwen3VLForConditionalGeneration

from actfer_jax.agent.environment import Environment, Observation
from actfer_jax.agent.episode import Sample
from actfer_jax.models import mrope_positions
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.batch import Patches, Sequence
from actfer_jax.training.optimizer import OptimizerConfig

CACHES = ("dynamic", "static")


class Peer:
    """transformers' PyTorch model of an agent's directory, in float32, on the cores that this process may use.

    The rules of episodes, the tools, the tokenizer and the image processor are those of the agent.
    """

    def __init__(self, directory: Path | str, agent: Agent):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
        self.agent = agent
        self.banned_V = torch.from_numpy(agent.chat.banned(agent.model_config.text.vocab_size))

    def generate(self, samples: list[Sample], cache: str) -> list[list[int]]:
        """The prompts of the samples with the likeliest `turn_tokens` tokens after them, by transformers' `generate`.

        Args:
          cache: one of `CACHES`.
        """
        prompts = [self._environment().reset(sample) for sample in samples]
        inputs = self._inputs([prompt.token_ids for prompt in prompts], [self._patches(prompt) for prompt in prompts])
        count = self.agent.rollout.turn_tokens
        rows_RxT = self.model.generate(
            **inputs,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            logits_processor=LogitsProcessorList([lambda ids, logits: self._allowed(logits)]),
            cache_implementation=cache,
        )
        return [prompt.token_ids + row[-count:] for prompt, row in zip(prompts, rows_RxT.tolist(), strict=True)]

    @torch.inference_mode()
    def play(self, samples: list[Sample]) -> list[list[int]]:
        """Greedy episodes of the samples, all in one batch, turn by turn; the token ids of each.

        The cache is kept from turn to turn, so nothing is computed twice: a tool reply is read at once by all rows, and
        rows whose episode is over are dropped. Places of the cache that a row does not use are masked.
        """
        chat, limit = self.agent.chat, self.agent.rollout.turn_tokens
        environments = [self._environment() for _ in samples]
        read = [environment.reset(sample) for environment, sample in zip(environments, samples, strict=True)]
        played: list[list[int]] = [[] for _ in samples]
        position, pending = [0] * len(samples), [[] for _ in samples]
        rows, cache, mask_RxT = list(range(len(samples))), DynamicCache(), torch.zeros(len(samples), 0, dtype=int)
        with ThreadPoolExecutor(self.agent.rollout.tool_threads) as pool:
            while rows:
                inputs = self._inputs(
                    [[*pending[row], *read[row].token_ids] for row in rows],
                    [self._patches(read[row]) for row in rows],
                    [position[row] for row in rows],
                )
                for place, row in enumerate(rows):
                    played[row] += read[row].token_ids
                    position[row] = int(inputs["position_ids"][:, place, -1].max()) + 1
                position_R = torch.tensor([position[row] for row in rows])
                mask_RxT = torch.cat([mask_RxT, inputs.pop("attention_mask")], 1)
                turns: list[list[int]] = [[] for _ in rows]
                writing_R = torch.ones(len(rows), dtype=bool)
                for count in itertools.count(1):
                    output = self.model(**inputs, attention_mask=mask_RxT, past_key_values=cache, logits_to_keep=1)
                    token_R = self._allowed(output.logits[:, -1]).argmax(-1)
                    for place in writing_R.nonzero()[:, 0].tolist():
                        turns[place].append(int(token_R[place]))
                    wrote_R, writing_R = writing_R, writing_R & (token_R != chat.turn_end_id)
                    if count == limit or not writing_R.any():
                        break  # what was written last is read together with the reply
                    inputs = {"input_ids": token_R[:, None], "position_ids": position_R[None, :, None].expand(3, -1, 1)}
                    mask_RxT = torch.cat([mask_RxT, wrote_R[:, None]], 1)
                    position_R = position_R + wrote_R
                for place, row in enumerate(rows):
                    turn = turns[place]
                    played[row] += turn
                    position[row], pending[row] = int(position_R[place]), turn[-1:] * bool(wrote_R[place])
                    truncated = turn[-1] != chat.turn_end_id
                    environments[row].end_turn(chat.turn_text(turn), len(turn), truncated=truncated)
                stay = [place for place, row in enumerate(rows) if not environments[row].done]
                rows = [rows[place] for place in stay]
                mask_RxT = mask_RxT[stay]
                cache.batch_select_indices(torch.tensor(stay, dtype=int))
                replies = pool.map(lambda row: environments[row].run_tool(), rows)
                read = {row: environments[row].observe(*reply) for row, reply in zip(rows, replies, strict=True)}
        return played

    def updates(self, rows: list[Sequence], config: OptimizerConfig) -> Callable[[], float]:
        """A function that updates all parameters once, on the same rows each time, and returns the loss before it: the
        cross-entropy of the policy's tokens."""
        inputs = self._inputs([row.tokens for row in rows], [row.views for row in rows])
        inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
        for labels, row in zip(inputs["labels"], rows, strict=True):
            labels[-len(row.tokens) :][torch.tensor(row.loss_mask)] = torch.tensor(row.tokens)[row.loss_mask]
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            betas=(config.b1, config.b2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.model.train()

        def update() -> float:
            loss = self.model(**inputs, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.detach())

        return update

    def _environment(self) -> Environment:
        agent = self.agent
        return Environment(agent.rollout, agent.chat, agent.toolbox, agent.encoder.tokens)

    def _allowed(self, logits_RxV: torch.Tensor) -> torch.Tensor:
        return logits_RxV.masked_fill(self.banned_V, -torch.inf)

    def _patches(self, observation: Observation) -> list[Patches]:
        return [self.agent.encoder(view.pixels) for view in observation.views]

    def _inputs(
        self, rows: list[list[int]], patches: list[list[Patches]], start: list[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Rows of token ids with their views as arrays, padded on the left.

        Args:
          start: the rotary position of each row's first token, where rows go on; None where all begin.
        """
        length = max(map(len, rows))
        tokens, mask = np.zeros((2, len(rows), length), np.int64)
        positions = np.zeros((3, len(rows), length), np.int64)
        for index, (row, views) in enumerate(zip(rows, patches, strict=True)):
            tokens[index, length - len(row) :], mask[index, length - len(row) :] = row, 1
            if start is not None:
                grids = np.array([view.grid for view in views], np.int64).reshape(-1, 3)
                found, _ = mrope_positions(row, grids, self.agent.model_config, start[index])
                positions[:, index, length - len(row) :] = found.T
        arrays = {"input_ids": tokens, "attention_mask": mask}
        if start is None:
            arrays["mm_token_type_ids"] = (tokens == self.agent.model_config.image_token_id).astype(np.int64)
        else:
            arrays["position_ids"] = positions
        if views := [view for row in patches for view in row]:
            arrays["pixel_values"] = np.concatenate([view.values for view in views])
            arrays["image_grid_thw"] = np.array([view.grid for view in views], np.int64)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
