"""Makes tiktoken_files.json: a small vocabulary in tiktoken's file format, and the ids that its own package gives hard texts.

    pip install tiktoken==0.14.0 && python tests/golden/tiktoken_files.py > tests/golden/tiktoken_files.json
"""

import base64
import json

import tiktoken
from sentence_piece import SENTENCES, TEXTS
from tiktoken._educational import bpe_train

# Those of Llama 3 and of Kimi K2.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KIMI = "|".join(
    [
        r"""[\p{Han}]+""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)


def main():
    ranks = bpe_train(data="\n".join(SENTENCES), vocab_size=256 + 120, pat_str=LLAMA3, visualise=None)
    models = {}
    for name, pattern in [("tokenizer.model", LLAMA3), ("tiktoken.model", KIMI)]:
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        models[name] = [encoding.encode_ordinary(text) for text in TEXTS]
    file = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda item: item[1]))
    print(json.dumps({"file": file, "texts": TEXTS, "ids": models}, ensure_ascii=True, separators=(",", ":")))



if __name__ == "__main__":
    main()
