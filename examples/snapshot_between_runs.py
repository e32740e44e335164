"""Keep answers in a file: run this twice, and the second run asks nobody.

Usage: python snapshot_between_runs.py [FILE]
"""

import asyncio
import sys
from pathlib import Path

from tinyllm_cli import create_cached_client


async def main(path: Path) -> None:
    # any number of processes may use the file at the same time
    async with await create_cached_client(snapshot=path, default_ttl=None) as client:
        answer = await client.generate("What is AI?", model="qwen2.5:0.5b")
        print(answer.response)
        hits = client.get_stats()["cache"]["hits"]
        print("Answered from the file." if hits else "Answered by the model.")


if __name__ == "__main__":
    default = Path.home() / ".cache" / "tinyllm-example" / "answers.sqlite3"
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
