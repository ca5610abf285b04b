// Searches, and what of their answers is shown: one at a time, page after page. Knows no address and no key.

import { search } from "./api.js";
import { byId, count, percent } from "./elements.js";
import { busy, tell, tellCount } from "./notice.js";
import { toRequest } from "./query.js";

const PAGE = 60; // results fetched at once
const UNLIKELY = 0.05; // below this probability of a match, none is confident
const FAINT = 0.25; // a hit less probable than this share of the first is not confident

/** `on` is told what happens: `begins()`, `found(answer)` of a first page, `refused(error)`. */
export class Searches {
  #grid;
  #attributes;
  #on;
  #asked = null; // the request that the results answer
  #next = ""; // the token of the page that follows
  #sure = ""; // what the model says of the first ten results
  #searching = null; // the AbortController of what is under way
  #paging = false;

  constructor(grid, attributes, on) {
    this.#grid = grid;
    this.#attributes = attributes;
    this.#on = on;
  }

  /** Search for what the query says now; whatever is under way is given up. */
  async run(query) {
    this.#searching?.abort();
    this.#on.begins();
    const now = toRequest(query);
    const mine = this.#searching = new AbortController();
    this.#next = "";
    if (!now) return this.#welcome();
    busy(true);
    try {
      const answer = await search({ ...now.request, pageSize: PAGE }, now.images, mine.signal);
      if (mine.signal.aborted) return;
      this.#asked = now;
      this.#show(answer);
      this.#on.found(answer);
    } catch (error) {
      if (error.name !== "AbortError" && mine === this.#searching) this.#on.refused(error);
    }
  }

  async nextPage() {
    if (!this.#next || this.#paging || !this.#asked) return;
    this.#paging = true;
    const mine = this.#searching;
    try {
      const page = { ...this.#asked.request, pageSize: PAGE, pageToken: this.#next };
      const answer = await search(page, this.#asked.images, mine.signal);
      if (mine !== this.#searching) return;
      this.#next = answer.nextPageToken;
      this.#attributes.fromHits(answer.hits);
      this.#grid.add(answer.hits);
      this.#tellCount();
    } catch (error) {
      if (error.name === "AbortError" || mine !== this.#searching) return;
      this.#next = "";
      this.#on.refused(error);
    } finally {
      this.#paging = false;
    }
    this.#grid.render();
  }

  /** Show no results. */
  clear() {
    this.#grid.show([], null);
    tellCount("");
  }

  #welcome() {
    busy(false);
    this.#asked = null;
    this.clear();
    tell(null);
    byId("welcome").hidden = false;
  }

  #show(answer) {
    tell(null);
    this.#next = answer.nextPageToken;
    scrollTo(0, 0);
    this.#grid.show(answer.hits, cutOf(answer));
    requestAnimationFrame(() => setTimeout(markPainted));
    this.#attributes.fromHits(answer.hits);
    byId("welcome").hidden = true;
    this.#sure = answer.matchProbability === undefined ? "" : ` · ${percent(answer.matchProbability)} that the one you mean is among the first ten`;
    this.#tellCount();
    busy(false);
  }

  #tellCount() {
    const found = this.#grid.hits.length;
    if (found) return tellCount(`${count(found)}${this.#next ? " and more" : ""} pictures${this.#sure}`);
    tell("Nothing found", this.#asked.request.filter ? "No picture passes the filters." : "The index holds no picture.");
    tellCount("Nothing found");
  }
}

/** Note when results were on the screen, for who measures it. */
function markPainted() {
  performance.clearMarks("painted");
  performance.mark("painted");
}

/** Where confident matches end, where the model says how sure it is. */
function cutOf({ hits, matchProbability }) {
  if (matchProbability === undefined || !hits.length) return null;
  if (matchProbability < UNLIKELY) return { after: 0, text: "Perhaps nothing here is what you mean" };
  const least = FAINT * hits[0].probability;
  const after = hits.findIndex((hit) => !(hit.probability >= least));
  return after > 0 ? { after, text: "Less certain from here on" } : null;
}
