"""The data module of finetuning: instructions, or random ones, as sequences with a loss on answers."""

# Without postponed annotations: NeMo-Run's command line reads the types of the constructors' arguments.
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from slipway.configs import Data, Refusal
from slipway.configs.schema import Template, TooLong
from slipway.recipes.finetune.examples import files_of
from slipway.recipes.finetune.template import Tokenization, Tokens
from slipway.recipes.finetune.tokenized import Tokenized, key_of, load, packed, save, tokenized
from slipway.recipes.runtime.data import Continuing

_RANDOM_EXAMPLES = 512  # of a set of random instructions
_SHARE_OF_ANSWERS = 0.5  # of the tokens of a random example


class Sequences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sequences of one length, again and again, in another order each time.

    Args:
        made: the tokens.
        seq_length: tokens of a sequence; shorter ones are padded, and the padding has no loss.
        samples: the length of the dataset.
        seed: of the orders; None: as they are.
        together: whether a sequence holds several examples, which do not attend to each other.
        padding: the id of padding.
    """

    def __init__(
        self, made: Tokenized, seq_length: int, samples: int, seed: Optional[int], together: bool, padding: int
    ) -> None:
        self.made, self.seq_length, self.samples, self.seed, self.together = made, seq_length, samples, seed, together
        self.padding = padding
        self._order: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, at = divmod(int(index), self.made.num_sequences)
        return self._tensors(self.made.sequence(self._of_epoch(epoch)[at]))

    def _of_epoch(self, epoch: int) -> Any:
        if self._order[0] != epoch:
            count = self.made.num_sequences
            shuffled = self.seed is not None
            order = np.random.default_rng((self.seed or 0, epoch)).permutation(count) if shuffled else np.arange(count)
            self._order = (epoch, order)
        return self._order[1]

    def _tensors(self, examples: list[Tokens]) -> dict[str, torch.Tensor]:
        size = self.seq_length
        tokens, labels = np.full(size, self.padding, np.int64), np.full(size, self.padding, np.int64)
        mask, positions = np.zeros(size, np.float32), np.zeros(size, np.int64)
        ends = [0]
        for example in examples:
            start, end = ends[-1], ends[-1] + len(example.ids) - 1
            tokens[start:end], labels[start:end] = example.ids[:-1], example.ids[1:]
            mask[start:end], positions[start:end] = example.answer[1:], np.arange(end - start)
            ends.append(end)
        if ends[-1] < size:  # the padding is a sequence of its own
            positions[ends[-1] :] = np.arange(size - ends[-1]) if self.together else np.arange(ends[-1], size)
            ends.append(size)
        made = {"tokens": tokens, "labels": labels, "loss_mask": mask, "position_ids": positions}
        tensors = {name: torch.from_numpy(array) for name, array in made.items()}
        if self.together:
            tensors["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32)
            tensors["cu_seqlens_argmin"] = torch.tensor([len(ends)])  # where NeMo cuts off padding of this list
            tensors["max_seqlen"] = torch.tensor([int(np.diff(ends).max())], dtype=torch.int32)
        return tensors

    @staticmethod
    def collate_fn(batch: list[dict[str, torch.Tensor]]) -> Any:
        return torch.utils.data.default_collate(batch)


class InstructionData(Continuing):
    """Instructions of .jsonl files.

    Args:
        paths: files, or folders with a training.jsonl.
        cache: the folder that keeps their tokens, which the first process of a node makes.
        split: shares of training and validation of the files, where no validation set is given.
        validation_paths: files of the validation set; empty: validation.jsonl of the folders.
        packed, template, chat_template, too_long: as the keys of ``data``.
        seed: of the order of the data; the other arguments are those of NeMo's modules.
    """

    def __init__(
        self,
        paths: list[str],
        cache: str,
        seq_length: int = 2048,
        tokenizer: Any = None,
        micro_batch_size: int = 1,
        global_batch_size: int = 8,
        num_workers: int = 2,
        pin_memory: bool = True,
        persistent_workers: bool = False,
        split: str = "1,0,0",
        validation_paths: Optional[list[str]] = None,
        packed: bool = True,
        template: str = "auto",
        chat_template: str = "",
        too_long: str = "refuse",
        seed: int = 1234,
    ) -> None:
        super().__init__(
            seq_length=seq_length,
            tokenizer=tokenizer,
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
        )
        self.paths, self.validation_paths = list(paths), list(validation_paths or [])
        self.cache, self.split, self.seed, self.packed = cache, split, seed, packed
        self.template, self.chat_template, self.too_long = template, chat_template, too_long

    @property
    def data(self) -> Data:
        """The keys of ``data`` that decide what the tokens are."""
        return Data(
            name="instructions",
            packed=self.packed,
            template=Template(self.template),
            chat_template=self.chat_template,
            too_long=TooLong(self.too_long),
        )

    def prepare_data(self) -> None:
        for _, folder, make in self._sets():
            if not folder.is_dir():
                save(make(), folder)

    def setup(self, stage: str = "") -> None:
        made = {name: load(folder) for name, folder, _ in self._sets()}
        self._train_ds = self._sequences(made["training"], self.num_train_samples, self.seed)
        if "validation" not in made and self.trainer and self.trainer.limit_val_batches:
            raise Refusal(f"{self.paths[0]} has no validation set", "Use run.val_check_interval=0, or data.split.")
        # NeMo asks for its length, whether it is read or not
        self._validation_ds = self._sequences(made.get("validation", made["training"]), self.num_val_samples, None)

    def _sequences(self, made: Tokenized, samples: int, seed: Optional[int]) -> Sequences:
        padding = self.tokenizer.eos_id if self.tokenizer.eos_id is not None else 0
        return Sequences(made, self.seq_length, samples, seed, self.packed, padding)

    def _sets(self) -> list[tuple[str, Path, Callable[[], Tokenized]]]:
        """Each set: its name, the folder of its tokens, and what makes them."""
        training, beside = training_and_validation(self.paths)
        validation = [files_of(path)[0] for path in self.validation_paths] or beside
        shares = [float(share) for share in self.split.split(",")]
        first = shares[0] / sum(shares)
        until = first + shares[1] / sum(shares)
        sets = [("training", training, (0.0, 1.0 if validation else first))]
        if validation or until > first:
            sets.append(("validation", validation or training, (0.0, 1.0) if validation else (first, until)))
        tokenizer = self.tokenizer.tokenizer
        tokenize = Tokenization(tokenizer, self.data)
        found: list[tuple[str, Path, Callable[[], Tokenized]]] = []
        for name, paths, share in sets:
            key = key_of(paths, tokenizer, self.data, seq_length=self.seq_length, seed=self.seed, share=share)

            def make(paths: list[Path] = paths, share: tuple[float, float] = share) -> Tokenized:
                return tokenized(paths, tokenize, self.data, self.seq_length, self.seed, share)

            found.append((name, Path(self.cache) / f"{name}-{key}", make))
        return found


def training_and_validation(paths: list[str]) -> tuple[list[Path], list[Path]]:
    """The files of the training set, and the validation sets beside them."""
    pairs = [files_of(path) for path in paths]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs if pair[1] is not None]


class MockInstructions(Continuing):
    """Random instructions of random lengths, which depend on the seed and not on the layout.

    Args:
        packed: whether several share a sequence.
        seed: of the tokens; the other arguments are those of NeMo's modules.
    """

    def __init__(
        self,
        seq_length: int = 2048,
        tokenizer: Any = None,
        micro_batch_size: int = 1,
        global_batch_size: int = 8,
        num_workers: int = 2,
        pin_memory: bool = True,
        persistent_workers: bool = False,
        packed: bool = True,
        seed: int = 1234,
    ) -> None:
        super().__init__(
            seq_length=seq_length,
            tokenizer=tokenizer,
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
        )
        self.packed, self.seed = packed, seed

    def setup(self, stage: str = "") -> None:
        made = packed([self._example(i) for i in range(_RANDOM_EXAMPLES)], self.packed, self.seq_length, self.seed)
        self._train_ds, self._validation_ds = (
            Sequences(made, self.seq_length, samples, seed, self.packed, 0)
            for samples, seed in ((self.num_train_samples, self.seed), (self.num_val_samples, None))
        )

    def _example(self, index: int) -> Tokens:
        dice = np.random.default_rng((self.seed, index))
        length = int(dice.integers(max(4, self.seq_length // 8), self.seq_length // 2 + 1))
        ids = dice.integers(0, self.tokenizer.vocab_size, length).astype(np.int32)
        return Tokens(ids, np.arange(length) >= length * (1 - _SHARE_OF_ANSWERS))
