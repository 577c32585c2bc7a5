"""A conversation that forgets its oldest turns when the context is full.

python examples/conversation.py MODEL      questions from stdin, a line each
"""

import sys
from collections.abc import Iterable

from flatlm import LLM

ROOM = 200  # tokens kept free for the answer


def main(model: str, questions: Iterable[str] = sys.stdin) -> None:
    with LLM(model) as llm:
        messages = [{"role": "system", "content": "Answer in one sentence."}]
        for question in questions:
            messages.append({"role": "user", "content": question.strip()})
            while llm.count_tokens(messages) + ROOM > llm.backend.context and len(messages) > 2:
                del messages[1:3]  # a question and its answer; what is left is not computed again
            answer = llm.chat(messages, n=ROOM, temp=0.4, repeat_penalty=1.1)
            messages.append({"role": "assistant", "content": answer.text})
            print(answer.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
