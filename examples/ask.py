"""One question, answered as it is written.

python examples/ask.py MODEL "Why is the sky blue?"
"""

import sys

from flatlm import LLM


def main(model: str, question: str) -> None:
    with LLM(model) as llm:
        stream = llm.stream_chat([{"role": "user", "content": question}], n=200, repeat_penalty=1.1)
        for piece in stream:
            print(piece, end="", flush=True)
        print(f"\n({stream.completion.timings.decode_rate:.0f} tokens per second)")


if __name__ == "__main__":
    main(*sys.argv[1:])
