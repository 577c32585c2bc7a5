"""The same answer twice, the second time with guesses that are kept where they are right.

python examples/drafting.py MODEL "Repeat this list: one, two, three, four, five."
"""

import sys

from flatlm import LLM


def main(model: str, question: str) -> None:
    texts = []
    for draft in ("off", "auto"):  # auto:SMALLER also asks a smaller model of the same tokenizer
        with LLM(model, draft=draft) as llm:
            answer = llm.chat([{"role": "user", "content": question}], n=100)
        texts.append(answer.text)
        print(f"draft {draft}: {answer.timings.decode_rate:.0f} tokens per second")
    print("the same text" if texts[0] == texts[1] else "a bug: drafting never changes an answer")


if __name__ == "__main__":
    main(*sys.argv[1:])
