"""Makes sentence_piece.json: tiny models of SentencePiece, and the ids that its own package gives hard texts.

    pip install sentencepiece==0.2.3 protobuf && python tests/golden/sentence_piece.py > tests/golden/sentence_piece.json

Each model is trained on a few sentences, so that most of the texts need bytes or the unknown token.
"""

import io
import json
import os
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "the theatre there, then the other weather",
    "Ein schöner Größenvergleich über die Straße",
    "naïve café résumé coöperate",
    "привет мир, как дела",
    "你好世界 今天天气很好",
    "def main(args): return [x for x in args if x > 10]",
    "12345 67890 3.14159 1,000,000",
] * 4

TEXTS = [
    "",
    " ",
    "   ",
    "the theatre",
    " the theatre",
    "the  theatre ",
    "  two   gaps\t and\ttabs\n\nand lines\r\n",
    "\u00a0no\u00a0break\u3000ideographic\u2003em",
    "Größe café naïve",
    "cafe\u0301 de\u0301compose\u0301",
    "\ufb01ne \u2460 \u00bd \uff26\uff35\uff2c\uff2c \u33a5",
    "привет 世界 مرحبا שלום नमस्ते",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "\u2581 the mark \u2581itself",
    "x" * 40,
    "12345.6789 1,000",
    "a\u200bb\u200dc\ufeffd\u0000e",
    "<0x41> <unk> </s",
    "zzqqjj ŵŷź",
]

RULES = "FB01\t66 69\n2460\t31\n3000\t20\nA0\t20\n9\t20\nA\t20\nD\t20\n65 301\tE9\nFF26\t46\nFF35\t55\nFF2C\t4C\nFEFF\t\n"

KINDS = {
    "llama": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, vocab_size=400),
    "gemma": dict(
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        vocab_size=400,
    ),
    "t5": dict(model_type="unigram", rules=RULES, vocab_size=200),
    "unigram_bytes": dict(model_type="unigram", byte_fallback=True, normalization_rule_name="identity", vocab_size=420),
}


def trained(rules=None, **options):
    with tempfile.TemporaryDirectory() as folder:
        if rules is not None:
            options["normalization_rule_tsv"] = os.path.join(folder, "rules.tsv")
            with open(options["normalization_rule_tsv"], "w") as file:
                file.write(rules)
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES), model_writer=model, hard_vocab_limit=False, minloglevel=2, **options
        )
        return model.getvalue()


def merges(pieces):
    """The list of merges that transformers' converters make of scores, best first."""
    ids = {piece.piece: id for id, piece in enumerate(pieces) if piece.type in (1, 4)}
    found = []
    for piece in pieces:
        if piece.type in (1, 4):
            text = piece.piece
            parts = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in ids and text[at:] in ids]
            found += [(left, right, piece.score) for left, right in sorted(parts, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    found.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    return [f"{left} {right}" for left, right, _ in found]


def main():
    models = {}
    for name, options in KINDS.items():
        model = trained(**options)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString(model)
        models[name] = {
            "model": model.hex(),
            "pieces": [piece.piece for piece in proto.pieces],
            "types": [piece.type for piece in proto.pieces],
            "scores": [piece.score for piece in proto.pieces],
            "merges": merges(proto.pieces) if options["model_type"] == "bpe" else [],
            "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
            "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
            "precompiled_charsmap": list(proto.normalizer_spec.precompiled_charsmap),
            "ids": [processor.encode(text) for text in TEXTS],
            "decoded": [processor.decode(processor.encode(text)) for text in TEXTS],
        }
    print(json.dumps({"texts": TEXTS, "models": models}, ensure_ascii=True, indent=None, separators=(",", ":")))


if __name__ == "__main__":
    main()
