"""Adds to pre_tokenizers.json what the tokenizers package makes of its texts with the expressions of further models.

    pip install tokenizers==0.23.3 && python tests/golden/pre_tokenizers.py

The expressions are those of the models: `pat_str` of Kimi K2's tokenization_kimi.py.
"""

import json
import os

from tokenizers import Regex, pre_tokenizers

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
    path = os.path.join(os.path.dirname(__file__), "pre_tokenizers.json")
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    texts = list(found["gpt-2"])
    for name, expressions in {"kimi-k2": [KIMI]}.items():
        steps = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
        cut = pre_tokenizers.Sequence(steps)
        found[name] = {text: [word for word, _ in cut.pre_tokenize_str(text)] for text in texts}
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
