"""Stream an answer as it is written, and stream the stored one in the same pieces."""

import asyncio

from tinyllm_cli import CachedOllamaClient, create_cached_client

PROMPT = "Count from one to five."


async def tell(client: CachedOllamaClient) -> int:
    pieces = 0
    async for text in client.generate_stream(PROMPT, model="qwen2.5:0.5b"):
        print(text, end="", flush=True)
        pieces += 1
    print()
    return pieces


async def main() -> None:
    async with await create_cached_client() as client:
        live = await tell(client)
        replayed = await tell(client)
        print(f"{live} pieces from the model, {replayed} from the cache")

        # a stream and a whole answer to the same question are one entry
        await client.generate(PROMPT, model="qwen2.5:0.5b")
        print(f"Hits: {client.get_stats()['cache']['hits']}")


if __name__ == "__main__":
    asyncio.run(main())
