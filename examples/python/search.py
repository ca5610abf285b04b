"""Searches by a text, by a mixture, and page by page: `python examples/python/search.py "a red bicycle"`."""

import sys

from serving.client import Composition, SearchClient, ServiceError

text = sys.argv[1]
with SearchClient() as client:  # SEARCH_CLIENT_ADDRESS, SEARCH_CLIENT_TOKEN …
    try:
        results = client.search(text, k=5)
    except ServiceError as error:
        for violation in error.field_violations:
            print(f"{violation.field}: {violation.description}", file=sys.stderr)
        sys.exit(f"{error.reason or error.code}: {error.message}")
    for hit in results:
        print(f"{hit.score:.3f} {hit.image_id}")

    unlike = Composition(text, (results[0].captions[0], -0.5)) if results and results[0].captions else Composition(text)
    print("less like the first:", *(hit.image_id for hit in client.search(composition=unlike, k=3)))

    for number, page in enumerate(client.search_pages(text, k=20, fields=["image_id"]), 1):
        print(f"page {number}: {len(page)} hits")
        if number == 3:
            break
