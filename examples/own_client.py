"""Cache the answers of a client of your own; here one for OpenAI-compatible servers.

Ollama speaks that protocol too, under /v1, so this runs against OLLAMA_HOST.
"""

import asyncio
from typing import Any

import httpx

from tinyllm_cli import CachedOllamaClient, GenerateResponse, OllamaClient, create_memory_cache


class ChatClient:
    """What CachedOllamaClient asks of a client: `generate`, `get_stats` and `close`.

    `host` is part of the cache key, since a model of the same name may be another one elsewhere.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self._http = httpx.AsyncClient(base_url=host, timeout=300)
        self._asked = 0

    async def generate(
        self, prompt: str, model: str, system: str | None = None, temperature: float = 0.3
    ) -> GenerateResponse:
        self._asked += 1
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        reply = await self._http.post(
            "/v1/chat/completions",
            json={"model": model, "messages": messages, "temperature": temperature},
        )
        reply.raise_for_status()
        choice = reply.json()["choices"][0]
        return GenerateResponse(
            model=model,
            created_at="",
            response=choice["message"]["content"],
            done=True,
            done_reason=choice["finish_reason"],  # only "stop" and "length" are stored
        )

    def get_stats(self) -> dict[str, Any]:
        return {"request_count": self._asked}

    async def close(self) -> None:
        await self._http.aclose()


async def main() -> None:
    host = OllamaClient().host  # reads OLLAMA_HOST; connects to nothing
    async with CachedOllamaClient(ChatClient(host), create_memory_cache()) as client:
        for _ in range(3):
            answer = await client.generate("What is AI?", model="qwen2.5:0.5b", temperature=0)
        print(answer.response)
        print(f"Requests to the server: {client.get_stats()['client']['request_count']}")


if __name__ == "__main__":
    asyncio.run(main())
