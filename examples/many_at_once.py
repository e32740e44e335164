"""Fifty tasks ask the same question at once; the model is asked once."""

import asyncio

from tinyllm_cli import create_cached_client


async def main() -> None:
    async with await create_cached_client() as client:
        answers = await asyncio.gather(
            *(client.generate("What is AI?", model="qwen2.5:0.5b") for _ in range(50))
        )
        stats = client.get_stats()
        alike = all(answer == answers[0] for answer in answers)
        print(f"Answers: {len(answers)}, all the same: {alike}")
        print(f"Requests to Ollama: {stats['client']['request_count']}")
        print(f"Waited for another's answer: {stats['cache']['coalesced']}")


if __name__ == "__main__":
    asyncio.run(main())
