"""`flatlm serve`: HTTP in the dialects of OpenAI, Ollama, llama.cpp and Anthropic over one scheduler a model.

    dialects (openai, ollama, llamacpp …)  what a protocol calls things: requests in, bodies and events out
        │  asks: messages and fields → prompts        orders: answers as they are written
    engine                                 one thread that owns all models; asyncio only asks and looks
        │
    scheduler, backend                     as everywhere

A dialect knows no threads, the engine no HTTP.
"""
