"""The process that trains a byte-level BPE: a recipe and texts in, each a line of JSON; the tokenizer's JSON out.

It is run by its path, imports nothing of heed, and so starts in a twentieth of a second.
"""

import json
import signal
import sys

import tokenizers as hf


def main() -> None:
    """Reads standard input to its end, and writes to standard output once."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they reach it too: whoever waits for it decides
        signal.signal(number, signal.SIG_IGN)
    asked = sys.stdin.buffer.readline()
    if not asked:  # whoever asked was ended before it could say what for
        return
    recipe = json.loads(asked)
    tokenizer = hf.Tokenizer(hf.models.BPE())
    split = hf.pre_tokenizers.Split(hf.Regex(recipe["pattern"]), "isolated")
    byte_level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence([split, byte_level])
    trainer = hf.trainers.BpeTrainer(
        vocab_size=recipe["vocab_size"], initial_alphabet=recipe["alphabet"], min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(map(json.loads, sys.stdin.buffer), trainer)
    sys.stdout.buffer.write(tokenizer.to_str().encode())  # UTF-8, whatever the environment says of text


if __name__ == "__main__":
    main()
