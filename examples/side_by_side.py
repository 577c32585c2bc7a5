"""Many questions at once: weights are read once for all, each answer is the one it would be alone.

python examples/side_by_side.py MODEL "What is a river?" "What is a lake?" "What is a sea?"
"""

import sys

from flatlm import LLM


def main(model: str, *questions: str) -> None:
    with LLM(model, batch=4) as llm:
        prompts = [llm.chat_prompt([{"role": "user", "content": question}], n=60) for question in questions]
        for number, answer in llm.answer_many(prompts):  # in the order in which they end
            print(f"{questions[number]}\n  {answer.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
