"""The perplexity of a model on a text, over one worker or several.

    python -m tierflow.launch --num-workers 3 --cpu perplexity.py model.gguf text.txt

The text is cut into windows of tokens, each of which is read on its own. Sums are exact, so that the result is the same for any number of workers, to the last bit.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import tierflow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--window", type=int, default=256, help="tokens that are read at once")
    parser.add_argument("--windows", type=int, help="at most so many windows of the text")
    options = parser.parse_args()

    accelerator = tierflow.Accelerator()
    engine = accelerator.open_engine(options.model, ctx_size=options.window)
    tokens = engine.tokenize(options.text.read_text(encoding="utf-8"))
    starts = range(0, len(tokens) - 1, options.window)[: options.windows]
    windows = [{"number": i, "tokens": tokens[start : start + options.window]} for i, start in enumerate(starts)]

    results: list[tuple[int, list[float]]] = []
    for batch in accelerator.prepare(tierflow.DataLoader(windows, collate_fn=list)):
        scored = [(each["number"], engine.score(each["tokens"]).tolist()) for each in batch]
        results += accelerator.gather_for_metrics(scored)

    log_likelihoods = [value for _, values in results for value in values]
    mean = -math.fsum(log_likelihoods) / max(len(log_likelihoods), 1)
    told = {
        "processes": accelerator.num_processes,
        "windows": [number for number, _ in results],
        "tokens": len(log_likelihoods),
        "mean": mean.hex(),
        "perplexity": math.exp(mean),
    }
    accelerator.print(json.dumps(told))


if __name__ == "__main__":
    main()
