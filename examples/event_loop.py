"""In a program with an event loop: an answer with a time limit, while something else goes on.

python examples/event_loop.py MODEL "Tell me a long story." 3
"""

import asyncio
import sys

from flatlm import LLM


async def main(model: str, question: str, seconds: float) -> None:
    with LLM(model) as llm:
        stream = llm.astream_chat([{"role": "user", "content": question}], n=500, temp=0.7, seed=1)

        async def read() -> None:
            async for piece in stream:
                print(piece, end="", flush=True)

        reading = asyncio.create_task(read())
        done, _ = await asyncio.wait({reading}, timeout=seconds)
        if not done:
            stream.cancel()  # from any thread; what was written stays
            await reading
        print(f"\n({stream.completion.finish_reason}, {len(stream.completion.tokens)} tokens)")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
