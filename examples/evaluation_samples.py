"""Take several answers to each question, and the same ones whenever the evaluation runs again.

Usage: python evaluation_samples.py [FILE]
"""

import asyncio
import sys
from pathlib import Path

from tinyllm_cli import create_cached_client

QUESTIONS = {"What is 2 + 2?": "4", "What is the capital of France?": "Paris"}
SAMPLES = 3


async def main(path: Path) -> None:
    async with await create_cached_client(snapshot=path, default_ttl=None) as client:
        for question, expected in QUESTIONS.items():
            answers = await client.samples(
                SAMPLES, question, model="qwen2.5:0.5b", temperature=0.8, max_tokens=50
            )
            right = sum(expected in answer.response for answer in answers)
            print(f"{question} {right} of {len(answers)} right")
        stats = client.get_stats()
        # raise SAMPLES and run again: only the new answers are generated
        print(f"Generated {stats['client']['request_count']}, reused {stats['cache']['hits']}")


if __name__ == "__main__":
    default = Path.home() / ".cache" / "tinyllm-example" / "evaluation.sqlite3"
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
