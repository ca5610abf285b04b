"""Many searches over one stream, in asyncio: `python examples/python/many_searches.py "a cake" "a car"`."""

import asyncio
import sys

from serving.async_client import AsyncSearchClient
from serving.client import Search, ServiceError


async def main(texts: list[str]) -> None:
    """Print each answer when it comes."""
    async with AsyncSearchClient() as client:
        searches = (Search(text, k=3, fields=["image_id"]) for text in texts)
        async for place, answer in client.stream_search(searches):
            if isinstance(answer, ServiceError):
                print(f"{texts[place]}: {answer.reason}")
            else:
                print(f"{texts[place]}:", *(hit.image_id for hit in answer))


asyncio.run(main(sys.argv[1:]))
