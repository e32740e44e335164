"""Ask twice: the model answers the first time, the cache the second."""

import asyncio

from tinyllm_cli import OllamaClient, create_cached_client


async def main() -> None:
    client = OllamaClient()  # OLLAMA_HOST, else http://127.0.0.1:11434
    cached_client = await create_cached_client(
        client=client,
        backend="memory",
        max_size=1000,
        default_ttl=3600,
    )

    first = await cached_client.generate(model="qwen2.5:0.5b", prompt="What is AI?")
    second = await cached_client.generate(model="qwen2.5:0.5b", prompt="What is AI?")
    print(second.response)
    print(f"Same answer: {first == second}")

    stats = cached_client.get_stats()
    print(f"Requests to Ollama: {stats['client']['request_count']}")
    print(f"Hit rate: {stats['cache']['hit_rate']:.2%}")
    await cached_client.close()


if __name__ == "__main__":
    asyncio.run(main())
